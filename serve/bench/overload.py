"""More is asked than can be answered: how soon the rest is refused, and whether what is taken is answered as ever."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from llava_core.errors import EngineFailure
from serve.bench.children import running, running_controller, until_listed
from serve.bench.plan import draw_picture
from serve.bench.pressure import Pressure
from serve.bench.records import Spread
from serve.bench.report import Head
from serve.credentials import known_token

_PROBE_S = 0.05
_WATCH_S = 0.01
_MODEL = "overload"
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class OverloadPlan:
    """`factor` times as many requests as were answered a second when nobody had to be refused, for `seconds`."""

    factor: float = 4.0
    seconds: float = 10.0
    rounds: int = 3
    running: int = 8
    waiting: int = 8
    words: int = 20
    word_ms: float = 20.0
    images: int = 0
    image_size: tuple[int, int] = (672, 448)
    workers: int = 1
    direct: bool = False
    """To a worker itself, around the controller."""
    model_path: str | None = None
    """A checkpoint for our own engine; without it the engine is echo."""
    flags: tuple[str, ...] = ()
    """More for the workers' command line."""


@dataclass(frozen=True)
class OverloadRound:
    """Times in milliseconds. `goodput` is a share of `capacity`, in whole answers a second; `queue_ms` is what it takes
    at that pace to answer a full queue; `live_ms` is what a question after the health took meanwhile; `late_ms` is how
    late the load itself came to its turn, which is in all these times."""

    capacity: float
    asked: int
    served: int
    refused: int
    failed: int
    goodput: float
    refusal_ms: Spread | None
    first_ms: Spread | None
    queue_ms: float
    live_ms: dict[str, Spread | None]
    late_ms: Spread | None


@dataclass(frozen=True)
class OverloadReport:
    head: Head
    plan: OverloadPlan
    rounds: tuple[OverloadRound, ...]
    kind: Literal["overload"] = "overload"


@dataclass
class _Tally:
    """What became of requests; moments are of the monotonic clock."""

    ends: list[float] = field(default_factory=list[float])
    wholes: list[float] = field(default_factory=list[float])
    firsts: list[float] = field(default_factory=list[float])
    refusals: list[float] = field(default_factory=list[float])
    failed: int = 0


async def bench_overload(plan: OverloadPlan, head: Head) -> OverloadReport:
    """Controller and workers are processes of their own; the load comes from this one."""
    rounds: list[OverloadRound] = []
    for _ in range(plan.rounds):
        async with _topology(plan) as (api, addresses), aiohttp.ClientSession(connector=connector()) as http:
            pressure = Pressure(api, _CHAT, known_token(addresses["controller"]) if plan.direct else None)
            try:
                rounds.append(await _round(plan, pressure, addresses, http))
            finally:
                pressure.close()
    return OverloadReport(head, plan, tuple(rounds))


async def _round(
    plan: OverloadPlan, pressure: Pressure, addresses: dict[str, str], http: aiohttp.ClientSession
) -> OverloadRound:
    requests = [pressure.prepare(_body(plan, number)) for number in range(16)]
    capacity, answer_s = await _capacity(plan, pressure, requests)
    probes, late = {name: list[float]() for name in addresses}, list[float]()
    probing = [asyncio.create_task(_probe(address, probes[name], http)) for name, address in addresses.items()]
    probing.append(asyncio.create_task(_watch_ourselves(late)))
    tally, tasks = _Tally(), list[asyncio.Task[None]]()
    settle = 2 * answer_s * (1 + plan.waiting / plan.running)
    try:
        began = time.monotonic()
        step, due = 1 / (plan.factor * capacity), began
        while due < began + settle + plan.seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(_ask(pressure, requests[len(tasks) % len(requests)], tally)))
            due += step
        ended = time.monotonic()
        await asyncio.gather(*tasks)
    finally:
        for task in probing:
            task.cancel()
    done = sum(began + settle <= end <= ended for end in tally.ends)
    return OverloadRound(
        capacity=capacity,
        asked=len(tasks),
        served=len(tally.ends),
        refused=len(tally.refusals),
        failed=tally.failed,
        goodput=done / (ended - began - settle) / capacity,
        refusal_ms=_ms(tally.refusals),
        first_ms=_ms(tally.firsts),
        queue_ms=1000 * plan.workers * plan.waiting / capacity,
        live_ms={name: _ms(times) for name, times in probes.items()},
        late_ms=_ms(late),
    )


async def _capacity(plan: OverloadPlan, pressure: Pressure, requests: list[bytes]) -> tuple[float, float]:
    """Answers a second while somebody always waits and nobody is refused, and how long one takes alone."""
    alone = _Tally()
    for _ in range(3):
        await _ask(pressure, requests[0], alone)
    answer_s = sorted(alone.wholes)[len(alone.wholes) // 2]
    tally = _Tally()
    until = time.monotonic() + max(2.0, plan.seconds / 2, 5 * answer_s)

    async def person(number: int) -> None:
        while time.monotonic() < until:
            await _ask(pressure, requests[number % len(requests)], tally)

    people = plan.workers * (plan.running + (plan.waiting + 1) // 2)
    await asyncio.gather(*(person(number) for number in range(people)))
    if tally.failed or tally.refusals:
        raise EngineFailure(f"{tally.failed + len(tally.refusals)} of the requests that measure the capacity failed")
    begun = min(tally.ends)
    counted = [end for end in tally.ends if begun < end <= until]
    if not counted:
        raise EngineFailure("the capacity cannot be measured: too few answers came; allow more --seconds")
    return len(counted) / (until - begun), answer_s


async def _ask(pressure: Pressure, request: bytes, tally: _Tally) -> None:
    answered = await pressure.ask(request)
    if answered.status in (429, 503):
        tally.refusals.append(answered.total_s)
        tally.failed += not answered.retry_after
    elif answered.status == 200 and b"[DONE]" in answered.tail:
        tally.firsts.append(answered.first_s)
        tally.wholes.append(answered.total_s)
        tally.ends.append(answered.at)
    else:
        tally.failed += 1


async def _probe(address: str, times: list[float], http: aiohttp.ClientSession) -> None:
    while True:
        began = time.monotonic()
        async with http.get(address + "/health/live") as answer:
            await answer.read()
        times.append(time.monotonic() - began)
        await asyncio.sleep(_PROBE_S)


async def _watch_ourselves(late: list[float]) -> None:
    while True:
        due = time.monotonic() + _WATCH_S
        await asyncio.sleep(_WATCH_S)
        late.append(max(0.0, time.monotonic() - due))


@asynccontextmanager
async def _topology(plan: OverloadPlan) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """The address of the API, and whom to ask after their health."""
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(running_controller())
        controller, addresses = there.url, {"controller": there.api}
        echo = ("--engine", "echo", "--echo-delay", str(plan.word_ms / 1000))
        engine = echo if plan.model_path is None else ("--model-path", plan.model_path)
        flags = (*engine, "--model-name", _MODEL, *plan.flags)
        room = ("--max-running", str(plan.running), "--max-waiting", str(plan.waiting), "--controller", controller)
        for number in range(plan.workers):
            worker, _ = await stack.enter_async_context(running("serve.model_worker", (*flags, *room)))
            addresses[f"worker {number + 1}"] = worker
        await until_listed(controller, plan.workers)
        yield (addresses["worker 1"] if plan.direct else there.api), addresses


def _body(plan: OverloadPlan, number: int) -> bytes:
    pictures = [draw_picture(plan.image_size, f"{number}/{index}") for index in range(plan.images)]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    parts.append({"type": "text", "text": " ".join(["word"] * plan.words)})
    message = {"role": "user", "content": parts}
    asked = {
        "model": _MODEL,
        "messages": [message],
        "max_tokens": plan.words,
        "ignore_eos": plan.model_path is not None,
    }
    return json.dumps({**asked, "stream": True}).encode()


def connector() -> aiohttp.TCPConnector:
    """As many connections as are asked for; those left idle end soon, so that servers are seen as they are at rest."""
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=2)


def _ms(seconds: list[float]) -> Spread | None:
    return Spread.of(1000 * each for each in seconds)
