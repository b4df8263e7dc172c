"""Waits for a worker, step by step: until the step's deadline, or until the controller has given the worker up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from llava_core.errors import WorkerLost, WorkerTimeout
from serve.at_once import within

T = TypeVar("T")


class Silence(Exception):
    """Why a worker was given up: the controller said so."""


class Patience:
    """One per stream. A worker that hangs keeps its connections open, so only the controller can tell that it
    is gone; it is asked whenever a step has taken `check_s`."""

    def __init__(self, is_worth_it: Callable[[], Awaitable[bool | None]], check_s: float, request_id: str) -> None:
        self._is_worth_it = is_worth_it
        self._check_s = check_s
        self._request_id = request_id
        self._loop = asyncio.get_running_loop()
        self._step: asyncio.Timeout | None = None
        self._since = 0.0
        self._given_up = False
        self._next_look: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None

    async def wait(self, step: Awaitable[T], deadline: float) -> T:
        """The step's result. Raises WorkerTimeout at the deadline (of the loop's clock), WorkerLost on the news."""

        def timer() -> asyncio.Timeout:
            self._since = self._loop.time()
            self._step = asyncio.timeout_at(deadline)
            return self._step

        try:
            return await within(timer, step)
        except TimeoutError:
            if self._step is None or not self._step.expired():
                raise
            if self._given_up:
                raise WorkerLost(
                    "the worker has fallen silent; send the request again", request_id=self._request_id
                ) from Silence()
            raise WorkerTimeout(
                f"the worker sent nothing for {self._loop.time() - self._since:.0f} s; "
                "send the request again, or a shorter one",
                request_id=self._request_id,
            ) from None
        finally:
            self._step = None

    @contextmanager
    def watching(self) -> Generator[None]:
        """Ask the controller meanwhile."""
        self._next_look = self._loop.call_later(self._check_s, self._look)
        try:
            yield
        finally:
            self._next_look.cancel()
            if self._asking is not None:
                self._asking.cancel()

    def _look(self) -> None:
        if self._step is not None and self._loop.time() - self._since >= self._check_s:
            self._asking = self._loop.create_task(self._ask())
        else:
            self._next_look = self._loop.call_later(self._check_s, self._look)

    async def _ask(self) -> None:
        self._given_up = await self._is_worth_it() is False
        if not self._given_up:
            self._next_look = self._loop.call_later(self._check_s, self._look)
        elif self._step is not None and not self._step.expired():
            # The step that was slow may be over by now; only the one still waited for is cut short.
            self._step.reschedule(self._loop.time())
