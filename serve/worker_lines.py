"""One connection per worker that stays open as long as the worker lives: its end tells of a death within milliseconds.

The worker opens it once it is registered. What comes over it is only a sign of life, so that the worker notices a
controller that hangs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.worker_pool import WorkerPool

log = logging.getLogger(__name__)


class WorkerLines:
    """Belongs to one event loop. `close` ends all lines, as a controller that stops must, and forgets nobody."""

    def __init__(self, pool: WorkerPool, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._clock = clock
        self._held: dict[str, Response] = {}
        self._closing = asyncio.Event()

    def hold(self, address: str) -> Response:
        """The answer that is the line. A second one for the same address replaces the first."""
        line = _Line(self, address)
        self._held[address] = line
        return line

    def close(self) -> None:
        self._closing.set()

    async def run(self, line: Response, address: str, receive: Receive, send: Send) -> None:
        leaving = asyncio.create_task(_left(receive))
        closing = asyncio.create_task(self._closing.wait())
        try:
            while not (leaving.done() or closing.done()) and self._held.get(address) is line:
                await send({"type": "http.response.body", "body": b"\n", "more_body": True})
                await asyncio.wait(
                    {leaving, closing}, timeout=self._pool.timings.ping_s, return_when=asyncio.FIRST_COMPLETED
                )
            if not leaving.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()
            closing.cancel()
            if self._held.get(address) is line:
                del self._held[address]
                if not self._closing.is_set() and self._pool.lose(address, self._clock()):
                    log.warning("%s has gone: its connection ended", address)


class _Line(Response):
    def __init__(self, lines: WorkerLines, address: str) -> None:
        super().__init__(media_type="text/plain", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._lines, self._address = lines, address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._lines.run(self, self._address, receive, send)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
