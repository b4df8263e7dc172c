"""The threads of a model on a CPU: how many, and that nobody else keeps some."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from llava_core.machine import cores

T = TypeVar("T")


def in_passing_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that ends with it; returns or raises what it does.

    OpenMP keeps a team for every thread that once computed in parallel. As soon as the teams together have more
    threads than there are cores, workers fall asleep after each operation, and a decode step takes 1.6 times as long.
    So the model's own thread must be the only one with a team; that of a thread which ends goes with it.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon, so that Ctrl-C need not wait until it is done.
    thread = threading.Thread(target=run, name="passing", daemon=True)
    thread.start()
    result = outcome.result()
    thread.join()
    return result


def use_threads(count: int) -> None:
    """Let this thread, and those that first compute after this call, have `count` threads."""
    # A thread that computes for the first time takes what was set last, anywhere: make it do so before.
    torch.get_num_threads()
    torch.set_num_threads(count)


def compute_alone() -> None:
    """In a thread that prepares something beside the model's: no team of its own."""
    use_threads(1)


def set_threads(wanted: int | None) -> int:
    """Let this thread have as many as `count_threads` says; returns how many."""
    count = count_threads(wanted)
    use_threads(count)
    return count


def count_threads(wanted: int | None) -> int:
    """`wanted` threads, or one per physical core this process may keep busy, its container's limit included.

    More threads than cores make every operation wait for the slowest: 5 to 20 times slower. The event loop needs
    no core of its own, since it sleeps while the model computes.
    """
    if wanted is None and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        wanted = int(os.environ["OMP_NUM_THREADS"])
    return max(1, wanted or cores())
