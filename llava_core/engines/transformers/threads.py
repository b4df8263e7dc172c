"""How many threads the model gets on a CPU."""

from __future__ import annotations

import os

import torch


def set_threads(wanted: int | None) -> int:
    """Use `wanted` threads, or one per physical core this process may run on; returns how many.

    More threads than cores make every operation wait for the slowest: 5 to 20 times slower. The event loop needs
    no core of its own, since it sleeps while the model computes.
    """
    if wanted is None and os.environ.get("OMP_NUM_THREADS", "").isdigit():
        wanted = int(os.environ["OMP_NUM_THREADS"])
    count = max(1, wanted or _physical_cores())
    torch.set_num_threads(count)
    return count


def _physical_cores() -> int:
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return min(physical, allowed)
