"""Watches the table of workers: forgets those whose lease has run out, and asks those that are late whether they live.

A worker that hangs keeps its connections open. It is late when its heartbeats stay away; when it does not answer a
question either, it is under suspicion, and what it was doing goes on elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import httpx

from serve.worker_pool import WorkerPool

log = logging.getLogger(__name__)

_MOST_PAUSE_S = 1.0


def waking_clock(clock: Callable[[], float] = time.monotonic) -> Callable[[], float]:
    """A clock that counts no pause of the process itself: after one, everybody's lease would have run out.

    It must be asked more often than once in `_MOST_PAUSE_S`, which `watch` does.
    """
    real = counted = clock()

    def now() -> float:
        nonlocal real, counted
        passed, real = clock() - real, clock()
        counted += min(passed, _MOST_PAUSE_S)
        return counted

    return now


async def watch(pool: WorkerPool, clock: Callable[[], float], http: httpx.AsyncClient) -> None:
    """Until cancelled."""
    timings = pool.timings
    asking: dict[str, asyncio.Task[None]] = {}
    try:
        while True:
            await asyncio.sleep(timings.sweep_s)
            for address in pool.expire(clock()):
                log.warning("%s has been silent for %.0f s and is no longer listed", address, timings.lease_s)
            for address in [address for address, task in asking.items() if task.done()]:
                del asking[address]
            for address in pool.late(clock()):
                if address not in asking:
                    asking[address] = asyncio.create_task(_ask(pool, address, clock, http))
    finally:
        for task in asking.values():
            task.cancel()


async def _ask(pool: WorkerPool, address: str, clock: Callable[[], float], http: httpx.AsyncClient) -> None:
    try:
        async with asyncio.timeout(pool.timings.probe_s):
            await http.get(f"{address}/health/live")
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        if pool.suspect(address, clock()):
            log.warning("%s neither beats nor answers (%s); others take its work", address, type(error).__name__)
    else:
        pool.heard(address, clock())
