"""What is ready needs no wait: the hook before a wait, and timers that only waits start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serve.at_once import before_waiting, within


async def _three_then_wait(gate: asyncio.Event) -> AsyncGenerator[int]:
    for number in range(3):
        yield number
    await gate.wait()
    yield 3


async def test_what_is_ready_is_given_without_the_hook_and_a_wait_calls_it_first():
    gate, calls = asyncio.Event(), 0

    async def hook() -> None:
        nonlocal calls
        calls += 1
        gate.set()

    numbers = _three_then_wait(gate)
    assert [await before_waiting(anext(numbers), hook) for _ in range(3)] == [0, 1, 2]
    assert calls == 0
    assert await before_waiting(anext(numbers), hook) == 3
    assert calls == 1
    assert await before_waiting(anext(numbers, None), hook) is None


async def test_an_error_in_the_hook_ends_the_step_where_it_waits():
    met: list[str] = []

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        except ValueError:
            await asyncio.sleep(0)
            met.append("cleaned up")
            raise

    async def hook() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await before_waiting(step(), hook)
    assert met == ["cleaned up"]


async def test_cancelling_while_the_step_waits_reaches_the_step():
    waiting, met = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            met.set()

    async def hook() -> None:
        waiting.set()

    task = asyncio.create_task(before_waiting(step(), hook))
    await asyncio.wait_for(waiting.wait(), 5)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert met.is_set()


async def test_only_a_step_that_waits_starts_a_timer():
    timers = 0

    def timer() -> asyncio.Timeout:
        nonlocal timers
        timers += 1
        return asyncio.timeout(0.01)

    async def ready() -> str:
        return "ready"

    assert await within(timer, ready()) == "ready"
    assert timers == 0
    with pytest.raises(TimeoutError):
        await within(timer, asyncio.Event().wait())
    assert timers == 1
