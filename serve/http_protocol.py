"""uvicorn's HTTP/1.1, less patient: a connection on which a request's head does not come to its end is closed.

uvicorn itself waits for ever for the rest of a half-sent head, so a few hundred idle sockets could hold all its
file descriptors, and takes heads of any length.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 1024


def impatient_protocol(header_s: float) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=…)`, with so many seconds for a head."""

    class ImpatientProtocol(HttpToolsProtocol):
        _head_timer: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _answering: RequestResponseCycle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head_timer = self.loop.call_later(header_s, self._give_up)

        def data_received(self, data: bytes) -> None:
            waiting = self._is_between_requests()
            if waiting and self._head_timer is None:
                self._head_timer = self.loop.call_later(header_s, self._give_up)
            self._head_bytes += len(data) if waiting else 0
            super().data_received(data)
            if self._is_between_requests():
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.transport.close()
            else:
                self._head_bytes = 0
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)
            # uvicorn tells only the latest request, though one before it may still be answered.
            if self._answering is not None and not self._answering.response_complete:
                self._answering.disconnected = True
                self._answering.message_event.set()

        def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
            self._answering = cycle
            super()._start_asgi_task(cycle, app)

        def _is_between_requests(self) -> bool:
            # uvicorn's own annotation forgets that there is no cycle before the first request.
            return getattr(self.cycle, "response_complete", True)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if self._is_between_requests():
                self.transport.close()

    return ImpatientProtocol
