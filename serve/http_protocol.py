"""uvicorn's HTTP/1.1, less patient: a connection on which a request's head does not come to its end is closed.

uvicorn itself waits for ever for the rest of a half-sent head, so a few hundred idle sockets could hold all its
file descriptors.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def impatient_protocol(header_s: float) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=…)`, with so many seconds for a head."""

    class ImpatientProtocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head_timer = self.loop.call_later(header_s, self._give_up)

        def data_received(self, data: bytes) -> None:
            if self._head_timer is None and self._is_between_requests():
                self._head_timer = self.loop.call_later(header_s, self._give_up)
            super().data_received(data)
            if not self._is_between_requests():
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

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
