"""Only the model's own thread computes in parallel: a second team of OpenMP threads makes every step slow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from llava_core.config import BatchLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.engines.transformers.step import Step
from llava_core.engines.transformers.threads import in_passing_thread, use_threads
from llava_core.types import user
from tests.engines.exactness import greedy, load, picture, token_ids


async def test_the_models_thread_alone_computes_in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}

    def note(where: str) -> None:
        seen.setdefault(where, set()).add(torch.get_num_threads())

    run, loaded = Step.run, load("llava")
    prompt = loaded.prompt

    def noting_run(*args: object) -> torch.Tensor:
        note(threading.current_thread().name)
        return run(*args)  # pyright: ignore[reportArgumentType]

    def noting_prompt(*args: object, **kwargs: object) -> object:
        note(threading.current_thread().name.split("_")[0])
        return prompt(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Step, "run", noting_run)
    monkeypatch.setattr(loaded, "prompt", noting_prompt)
    before = torch.get_num_threads()
    engine = in_passing_thread(lambda: TransformersEngine(loaded, batch=BatchLimits(threads=2, kv_bytes=1 << 26)))
    try:
        for _ in range(2):
            await token_ids(engine, greedy(user(picture(1), "What is this?")))
        assert seen["model"] == {2}
        assert seen["prepare"] == {1}
    finally:
        await engine.aclose()
        use_threads(before)


def test_a_passing_thread_returns_and_raises_what_its_work_does() -> None:
    assert in_passing_thread(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(ZeroDivisionError):
        in_passing_thread(lambda: 1 // 0)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux lists them")
def test_a_passing_thread_leaves_no_team_behind() -> None:
    program = """
import os, torch
from llava_core.engines.transformers.threads import in_passing_thread, use_threads
def compute():
    use_threads(3)
    torch.ones(4_000_000).add_(1)
    return len(os.listdir("/proc/self/task"))
use_threads(3)
before = len(os.listdir("/proc/self/task"))
within = in_passing_thread(compute)
for _ in range(500):
    after = len(os.listdir("/proc/self/task"))
    if after <= before: break
    __import__("time").sleep(0.01)
assert within >= before + 3 and after <= before, (before, within, after)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
