"""Runs what is awaited up to its first wait: what is ready needs no timer, and something can be done before a wait."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")

Wait = Generator[Any, Any, T]


async def before_waiting(step: Awaitable[T], prepare: Callable[[], Awaitable[None]]) -> T:
    """The result of `step`. `prepare` is awaited first unless that result is there without any wait.

    An error in `prepare`, which cancellation is too, is raised in the step at the place where it waits.
    """
    running = step.__await__()
    try:
        waits_for = running.send(None)
    except StopIteration as done:
        return done.value
    failure: BaseException | None = None
    try:
        await prepare()
    except BaseException as error:
        failure = error
    result = await _go_on(running, waits_for, failure)
    if failure is not None:
        raise failure
    return result


async def within(timer: Callable[[], asyncio.Timeout], step: Awaitable[T]) -> T:
    """The result of `step`, or TimeoutError when the timer runs out. Only a step that has to wait starts one."""
    running = step.__await__()
    try:
        waits_for = running.send(None)
    except StopIteration as done:
        return done.value
    async with timer():
        return await _go_on(running, waits_for)


@types.coroutine
def _go_on(running: Wait[T], waits_for: Any, failure: BaseException | None = None) -> Wait[T]:
    """What `await` does, for a step that has already been begun."""
    try:
        if failure is not None:
            waits_for = running.throw(failure)
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                waits_for = running.throw(error)
            else:
                waits_for = running.send(sent)
    except StopIteration as done:
        return done.value
