"""Waits for a worker, step by step: until the step's deadline, or until the controller has given the worker up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from llava_core.errors import WorkerLost, WorkerTimeout

T = TypeVar("T")


class Patience:
    """One per stream. A worker that hangs keeps its connections open, so only the controller can tell that it
    is gone; it is asked whenever a step has taken `check_s`."""

    def __init__(self, is_worth_it: Callable[[], Awaitable[bool | None]], check_s: float, request_id: str) -> None:
        self._is_worth_it = is_worth_it
        self._check_s = check_s
        self._request_id = request_id
        self._step: asyncio.Timeout | None = None
        self._since = 0.0
        self._given_up = False

    async def wait(self, step: Awaitable[T], deadline: float) -> T:
        """The step's result. Raises WorkerTimeout at the deadline (of the loop's clock), WorkerLost on the news."""
        self._since = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(deadline) as self._step:
                return await step
        except TimeoutError:
            if self._given_up:
                raise WorkerLost(
                    "the worker has fallen silent; send the request again", request_id=self._request_id
                ) from None
            raise WorkerTimeout(
                f"the worker sent nothing for {asyncio.get_running_loop().time() - self._since:.0f} s; "
                "send the request again, or a shorter one",
                request_id=self._request_id,
            ) from None
        finally:
            self._step = None

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Ask the controller meanwhile."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._given_up:
            await asyncio.sleep(self._check_s)
            step, since = self._step, self._since
            if step is None or loop.time() - since < self._check_s:
                continue
            self._given_up = await self._is_worth_it() is False
            # The step that was slow may be over by now; only the one still waited for is cut short.
            if self._given_up and self._step is not None and not self._step.expired():
                self._step.reschedule(loop.time())
