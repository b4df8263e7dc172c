"""A TCP proxy that does to a connection what networks and dying machines do, when the test says so.

async with ChaosProxy(worker_url) as proxy:      # proxy.url stands for the worker from now on
    proxy.cut()              # every connection breaks (RST), new ones still work
    proxy.refuse()           # new ones are reset too, until proxy.heal()
    proxy.freeze()           # nothing moves any more, connections stay open; heal() lets it go on
    proxy.cut_after(1000)    # every connection breaks, once, when so many bytes more went to clients
    proxy.delay_s = 0.05     # each piece is late by this much
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_PIECE = 16 * 1024
_LINGER_NOT = struct.pack("ii", 1, 0)


class ChaosProxy:
    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.delay_s = 0.0
        self.accepted = 0
        self.bytes_to_client = 0
        self._refusing = False
        self._left: int | None = None
        self._moving = asyncio.Event()
        self._moving.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    def cut(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    def refuse(self) -> None:
        self._refusing = True
        self.cut()

    def freeze(self) -> None:
        self._moving.clear()

    def cut_after(self, count: int) -> None:
        self._left = count

    def heal(self) -> None:
        self._refusing, self._left = False, None
        self._moving.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None):
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            if self._refusing:
                return
            up_reader, up_writer = await asyncio.open_connection(*self._target)
            self._writers.add(up_writer)
            try:
                pumps = [
                    asyncio.create_task(self._pump(reader, up_writer)),
                    asyncio.create_task(self._pump(up_reader, writer, to_client=True)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.wait(pumps)
            finally:
                self._writers.discard(up_writer)
                _reset(up_writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            _reset(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._moving.wait()
                cut = False
                if to_client and self._left is not None:
                    piece, cut = piece[: self._left], len(piece) >= self._left
                    self._left = None if cut else self._left - len(piece)
                writer.write(piece)
                await writer.drain()
                self.bytes_to_client += len(piece) if to_client else 0
                if cut:
                    # Let what was written leave before the reset, which would destroy it.
                    await asyncio.sleep(0)
                    self.cut()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End with RST instead of a polite FIN."""
    with contextlib.suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()
