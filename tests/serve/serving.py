"""Apps on real sockets inside a test's own event loop, and an engine that does what its test tells it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI

from llava_core.types import Chunk, EngineStatus, ModelInfo, Request, Usage
from serve.http_protocol import impatient_protocol
from tests.topology import free_port


@asynccontextmanager
async def serving(app: FastAPI, *, port: int | None = None, header_s: float = 10) -> AsyncIterator[str]:
    """The address of `app`, for as long as the block lasts."""
    port = port or free_port()
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=port,
        http=impatient_protocol(header_s),
        ws="none",
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    try:
        await asyncio.wait_for(server.up.wait(), 20)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.enough.set()
        await task


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.enough = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        await self.enough.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the test runner's."""
        yield


Script = Callable[[Request], AsyncIterator[Chunk]]


async def two_words(request: Request) -> AsyncGenerator[Chunk]:
    yield Chunk("Hello ")
    yield Chunk("there")
    yield Chunk(finish_reason="stop", usage=Usage(3, 2))


@dataclass
class ScriptedEngine:
    """Answers by `script`, and remembers what it was asked and which answers it has let go of."""

    script: Script = two_words
    name: str = "m"
    busy: EngineStatus = field(default_factory=EngineStatus)
    asked: list[Request] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.name, engine="scripted", context_length=100)

    def status(self) -> EngineStatus:
        return self.busy

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        self.asked.append(request)
        try:
            async for chunk in self.script(request):
                yield chunk
        finally:
            self.released.set()

    async def aclose(self) -> None:
        pass
