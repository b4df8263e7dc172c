"""Prepared requests over sockets of its own, each timed where its answer arrives: asking costs next to nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

_TAIL_BYTES = 64
_KEPT_S = 2.0
"""An idle connection is used again for so long, which is shorter than servers keep theirs."""


@dataclass(frozen=True)
class Answered:
    """One answer. Times in seconds from when its request was handed to the socket; `at` is when it ended by the
    monotonic clock, `tail` its last bytes. Status 0 is a connection that broke."""

    status: int
    first_s: float
    total_s: float
    at: float
    tail: bytes = b""
    retry_after: bool = False


class Pressure:
    """To one server, with as many connections as are asked for; those that are free are used again."""

    def __init__(self, url: str, path: str, credential: str | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "127.0.0.1", parts.port or 80, path
        self._shown = {"Authorization": f"Bearer {credential}"} if credential else {}
        self._free: list[_Line] = []
        self._lines: set[_Line] = set()

    def prepare(self, body: bytes) -> bytes:
        """The bytes that `ask` sends."""
        fields = {
            "Host": f"{self._host}:{self._port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **self._shown,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self._path} HTTP/1.1\r\n{head}\r\n".encode() + body

    async def ask(self, request: bytes, *, limit_s: float = 300.0) -> Answered:
        """The answer, read to its end, which may come before all of the request is sent."""
        try:
            async with asyncio.timeout(limit_s):
                line = self._taken() or await self._opened()
                try:
                    answered = await line.exchange(request)
                finally:
                    if not line.is_free:
                        line.close()
        except (OSError, TimeoutError):
            return Answered(0, 0.0, 0.0, time.monotonic())
        if line.is_free:
            self._free.append(line)
        return answered

    def close(self) -> None:
        for line in list(self._lines):
            line.close()

    def _taken(self) -> _Line | None:
        oldest = time.monotonic() - _KEPT_S
        while self._free:
            line = self._free.pop()
            if line.is_free and line.since > oldest:
                return line
            line.close()
        return None

    async def _opened(self) -> _Line:
        _, line = await asyncio.get_running_loop().create_connection(lambda: _Line(self._lines), self._host, self._port)
        return line


class _Line(asyncio.Protocol):
    """One connection; httptools calls the `on_` methods."""

    def __init__(self, lines: set[_Line]) -> None:
        self._lines = lines
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._parser: Any = None
        self._ended: asyncio.Future[Answered] | None = None
        self._began = self._first = self.since = 0.0
        self._tail = b""
        self._retry_after = self._keeps = False

    @property
    def is_free(self) -> bool:
        """Whether another request can go over it: the last one was sent and answered to its end."""
        idle = self._ended is None and self._keeps and not self._transport.is_closing()
        return idle and self._transport.get_write_buffer_size() == 0

    async def exchange(self, request: bytes) -> Answered:
        self._parser = httptools.HttpResponseParser(self)
        self._tail, self._first, self._retry_after, self._keeps = b"", 0.0, False, False
        ended = self._ended = self._loop.create_future()
        self._began = time.monotonic()
        self._transport.write(request)
        try:
            return await ended
        finally:
            self._ended = None

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._lines.add(self)

    def data_received(self, data: bytes) -> None:
        if self._parser is not None:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                self._break(ConnectionError(str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lines.discard(self)
        self._break(ConnectionResetError("the server hung up before its answer was whole"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._retry_after |= name.lower() == b"retry-after"

    def on_body(self, body: bytes) -> None:
        self._first = self._first or time.monotonic()
        self._tail = (self._tail + body)[-_TAIL_BYTES:]

    def on_message_complete(self) -> None:
        self.since = now = time.monotonic()
        self._keeps = self._parser.should_keep_alive()
        if self._ended is not None and not self._ended.done():
            first = (self._first or now) - self._began
            status = self._parser.get_status_code()
            self._ended.set_result(Answered(status, first, now - self._began, now, self._tail, self._retry_after))

    def _break(self, error: ConnectionError) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)
