"""Ordinary people beside those who are up to no good: their answers take as long as when they are among themselves."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import suppress

import httpx
import psutil

from llava_core.config import ServerLimits
from serve.controller import create_app as controller_app
from serve.protocol import Registration, WorkerStatus
from serve.worker_app import create_app as worker_app
from serve.worker_pool import WorkerPool
from tests.faults.fake_engine import FakeEngine
from tests.faults.lateness import Lateness
from tests.faults.test_hostile_input import CHAT, JSON, PICTURES, chat, image
from tests.picture_bombs import gif, png, ztxt_bomb
from tests.serve.serving import serving
from tests.topology import Server, Topology

PEOPLE, QUESTIONS, WORDS, WORD_S = 4, 5, 20, 0.02


async def p95s(http: httpx.AsyncClient, rounds: int, model: str = "m") -> list[float]:
    """Of the answers to a few people who each ask some questions, one after the other; of each round."""
    return [await _p95(http, model) for _ in range(rounds)]


async def _p95(http: httpx.AsyncClient, model: str) -> float:
    times: list[float] = []
    body = chat("word " * 30, model=model, max_tokens=WORDS, stream=True)

    async def person() -> None:
        for _ in range(QUESTIONS):
            began = time.monotonic()
            answer = await http.post(CHAT, json=body)
            times.append(time.monotonic() - began)
            assert answer.status_code == 200
            assert "[DONE]" in answer.text

    await asyncio.gather(*(person() for _ in range(PEOPLE)))
    return statistics.quantiles(times, n=20)[-1]


# Slow connections --------------------------------------------------------------------------------------------------

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KINDS = {"half a head": HEAD + b"X-Slow: ", "half a body": HEAD + b"Content-Length: 5000\r\n\r\n{"}
BODY_S = 3.0


async def test_three_hundred_slow_heads_and_bodies_are_hung_up_on_in_time_and_hold_nobody_up():
    """Half of them go on with a byte a second. For bodies the limit is a shorter one than servers have."""
    assert ServerLimits().header_s <= 10
    assert ServerLimits().body_s <= 30
    engine, pool, server = FakeEngine(delay_s=WORD_S), WorkerPool(), ServerLimits(body_s=BODY_S)

    async def opened(port: int, kind: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(KINDS[kind])
        return reader, writer, time.monotonic()

    async def held(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, began: float, kind: str, drips: bool
    ) -> tuple[str, float]:
        closing = asyncio.create_task(reader.read())
        try:
            while not closing.done():
                if drips and not writer.is_closing():
                    writer.write(b"x")
                await asyncio.wait([closing], timeout=1)
            answer = b"" if closing.exception() else closing.result()
            assert answer == b"" if kind == "half a head" else answer.startswith(b"HTTP/1.1 408 ")
        finally:
            closing.cancel()
            writer.close()
        return kind, time.monotonic() - began

    async with (
        serving(worker_app(engine)) as worker,
        serving(controller_app(pool, clock=lambda: 0.0, server=server), header_s=ServerLimits().header_s) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=120) as http,
    ):
        pool.register(Registration(worker, WorkerStatus(("m",), capacity=100)), 0)
        port = http.base_url.port
        assert port is not None
        with Lateness() as late:
            before = await p95s(http, 2)
            kinds = ["half a head"] * 300 + ["half a body"] * 60
            there = await asyncio.gather(*(opened(port, kind) for kind in kinds))
            each = enumerate(zip(there, kinds, strict=True))
            holding = [asyncio.create_task(held(*connection, kind, n % 2 == 0)) for n, (connection, kind) in each]
            beside = min(await p95s(http, 3))
            async with asyncio.timeout(120):
                closed = await asyncio.gather(*holding)
            usual = max(*before, *await p95s(http, 2))
    medians = {kind: statistics.median(took for each, took in closed if each == kind) for kind in KINDS}
    told = ", ".join(f"{kind} closed after {took:.1f} s" for kind, took in medians.items())
    print(
        f"\n{len(closed)} slow connections, {told}; "
        f"answers to others (p95): {usual:.3f} s before or afterwards, {beside:.3f} s beside them; {late}"
    )
    assert medians["half a head"] <= late.allows(10.0)
    assert medians["half a body"] <= BODY_S + late.allows(1.0)
    assert beside <= usual + late.allows(0.1 * usual)


# Bombs -------------------------------------------------------------------------------------------------------------


def memory_of(*servers: Server) -> list[float]:
    """MiB of each, with the processes that decode for it."""
    sums: list[float] = []
    for server in servers:
        parent, held = psutil.Process(server.pid), 0
        for each in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                held += each.memory_info().rss
        sums.append(held / 2**20)
    return sums


async def test_bombs_cost_those_beside_them_neither_time_nor_memory(topology: Topology):
    bombs = {
        **{kind: PICTURES[kind] for kind in ("177 megapixels", "a line", "a high line", "cut off", "tiff", "svg")},
        "a transparent plane": png(13_300, 13_300, colour=6),
        "a comment of 200 MB": ztxt_bomb(),
        "three hundred frames": gif(300),
    }
    controller = await asyncio.to_thread(topology.controller)
    worker = await asyncio.to_thread(topology.worker, "echo", delay_s=WORD_S, extra=("--max-running", "16"))
    took: dict[str, list[float]] = {}
    most = [0.0, 0.0]
    async with httpx.AsyncClient(base_url=topology.api_url, trust_env=False, timeout=120) as http:
        for data in (PICTURES["cut off"], bombs["three hundred frames"]):
            await http.post(CHAT, json=chat(image(data), "what?", model="echo", max_tokens=2))
        start = memory_of(controller, worker)

        bodies = {
            kind: json.dumps(chat(image(data), "what?", model="echo", max_tokens=2)) for kind, data in bombs.items()
        }
        enough = asyncio.Event()

        async def throw_bombs() -> None:
            while not enough.is_set():
                for kind, raw in bodies.items():
                    began = time.monotonic()
                    answer = await http.post(CHAT, content=raw, headers=JSON)
                    took.setdefault(kind, []).append(time.monotonic() - began)
                    expected = 200 if kind == "three hundred frames" else 400
                    assert answer.status_code == expected, (kind, answer.text[:500])

        async def weigh() -> None:
            while True:
                found = await asyncio.to_thread(memory_of, controller, worker)
                most[:] = [max(pair) for pair in zip(most, found, strict=True)]
                await asyncio.sleep(0.05)

        with Lateness() as late:
            before = await p95s(http, 2, "echo")
            throwing, weighing = asyncio.create_task(throw_bombs()), asyncio.create_task(weigh())
            beside = min(await p95s(http, 3, "echo"))
            enough.set()
            await throwing
            weighing.cancel()
            usual = max(*before, *await p95s(http, 2, "echo"))
    medians = {kind: statistics.median(times) for kind, times in took.items()}
    slowest = max(medians, key=lambda kind: medians[kind])
    grown = [now - then for now, then in zip(most, start, strict=True)]
    print(
        f"\n{sum(map(len, took.values()))} bombs: the slowest ({slowest}) answered after {medians[slowest]:.2f} s; "
        f"answers to others (p95): {usual:.3f} s before or afterwards, {beside:.3f} s beside them; "
        f"memory grew by {grown[0]:.0f} MiB (controller) and {grown[1]:.0f} MiB (worker, decoders); {late}"
    )
    assert medians[slowest] < late.allows(1.0)
    assert max(grown) < 200
    assert beside <= usual + late.allows(0.2 * usual)
