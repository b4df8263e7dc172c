"""What the fault tests share: workers with proxies before them behind one controller, all in the test's own loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from llava_core.config import BreakerLimits, ClientTimings
from llava_core.engines.base import Engine
from llava_core.types import Chunk, Request
from serve.client import Client
from serve.controller import create_app as controller_app
from serve.protocol import Registration, WorkerStatus
from serve.worker_app import create_app
from serve.worker_pool import WorkerPool
from tests.faults.chaos_proxy import ChaosProxy
from tests.serve.serving import serving


@dataclass(frozen=True)
class Rig:
    """A controller at `url` and its workers, each reached through its proxy. Their leases do not run out."""

    url: str
    proxies: tuple[ChaosProxy, ...]
    pool: WorkerPool
    client: Client


@asynccontextmanager
async def rig(
    engines: Sequence[Engine], *, timings: ClientTimings | None = None, breakers: BreakerLimits | None = None
) -> AsyncIterator[Rig]:
    # A machine that tests may stand still for seconds, which is no reason to give a worker up.
    timings = timings or ClientTimings(connect_s=60)
    pool = WorkerPool()
    async with AsyncExitStack() as stack:
        proxies: list[ChaosProxy] = []
        for engine in engines:
            worker = await stack.enter_async_context(serving(create_app(engine)))
            proxy = await stack.enter_async_context(ChaosProxy(worker))
            proxies.append(proxy)
            pool.register(Registration(proxy.url, WorkerStatus((engine.info.name,), capacity=100)), 0)
        app = controller_app(pool, clock=lambda: 0.0, client_timings=timings, breakers=breakers)
        url = await stack.enter_async_context(serving(app))
        client = await stack.enter_async_context(Client(url, timings=timings))
        yield Rig(url, tuple(proxies), pool, client)


@dataclass
class Reading:
    """One answer as its reader got it: `error` where it broke off, `gap_s` the longest pause between two chunks."""

    chunks: list[Chunk]
    error: Exception | None = None
    gap_s: float = 0.0
    at: float = 0.0

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def end(self) -> Chunk:
        return self.chunks[-1]


async def read(client: Client, request: Request, *, on_chunk: Callable[[int], None] | None = None) -> Reading:
    """The whole answer, or what came of it before an error; `on_chunk` is told how many chunks have come."""
    reading = Reading([])
    last = time.monotonic()
    try:
        async for chunk in client.stream(request):
            now = time.monotonic()
            reading.gap_s, last = max(reading.gap_s, now - last), now
            reading.chunks.append(chunk)
            if on_chunk is not None:
                on_chunk(len(reading.chunks))
    except Exception as error:
        reading.error = error
    reading.at = time.monotonic()
    return reading


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> float:
    """Wait for what happens soon; how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise AssertionError(f"it did not happen within {within_s:g} s")
        await asyncio.sleep(0.002)
    return time.monotonic() - began
