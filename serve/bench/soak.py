"""Thousands of mixed requests, some given up half-way, some with broken pictures: does anything grow that must not?"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from llava_core.errors import EngineFailure
from serve.bench.children import running, running_controller, until_listed
from serve.bench.overload import connector
from serve.bench.plan import draw_picture
from serve.bench.report import Head
from serve.credentials import known_token

_MODEL = "soak"
_ANSWER_S = 300.0
_IDLE_S = 60.0
_SAMPLES = 100
_SETTLED = 0.1
"""Of a run: caches fill and buffers grow to their size; what comes after it counts."""
MOST_GROWTH = {"rss_mib": 12.0, "descriptors": 4.0, "threads": 2.0}
"""From the first quarter's median to the last one's, in 20,000 requests or in 200."""


@dataclass(frozen=True)
class SoakPlan:
    """`aborted` and `bad` are shares of the requests. Without `model_path` the engine is echo."""

    requests: int = 20_000
    at_once: int = 16
    workers: int = 2
    aborted: float = 0.10
    bad: float = 0.05
    pictures: float = 0.2
    words: int = 12
    word_ms: float = 1.0
    model_path: str | None = None
    flags: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One process, and those it started, after so many requests."""

    requests: int
    rss_mib: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Trend:
    """Medians of the first and the last quarter, and what a straight line through all of it gains in 1,000 requests."""

    first: float
    last: float
    per_1000: float

    def is_flat(self, most: float) -> bool:
        return self.last - self.first <= most


@dataclass(frozen=True)
class SoakReport:
    """`outcomes` by what was asked and what came of it; `slots` are requests that run or wait at the end, which must be
    none; `unbalanced` are those that came in and of which nobody knows what became."""

    head: Head
    plan: SoakPlan
    seconds: float
    outcomes: dict[str, int]
    unexpected: tuple[str, ...]
    slots: int
    unbalanced: int
    samples: dict[str, tuple[Sample, ...]]
    kind: Literal["soak"] = "soak"

    def trends(self) -> dict[str, dict[str, Trend]]:
        return {name: {what: _trend(samples, what) for what in MOST_GROWTH} for name, samples in self.samples.items()}

    def problems(self) -> list[str]:
        """What is not as it should be, in sentences."""
        found = [*self.unexpected]
        if self.slots or self.unbalanced:
            found.append(f"{self.slots} requests still run or wait, {self.unbalanced} are unaccounted for")
        for name, trends in self.trends().items():
            for what, most in MOST_GROWTH.items():
                if not trends[what].is_flat(most):
                    found.append(f"{what} of {name} grew from {trends[what].first:g} to {trends[what].last:g}")
        return found


async def bench_soak(plan: SoakPlan, head: Head, told: Callable[[int], None] = lambda done: None) -> SoakReport:
    """Controller and workers are processes of their own."""
    loop = asyncio.get_running_loop()
    async with _topology(plan) as (api, pids, metrics), aiohttp.ClientSession(connector=connector()) as http:
        draws, bodies = random.Random(plan.seed), _Bodies(plan)
        outcomes, unexpected = Counter[str](), list[str]()
        samples: dict[str, list[Sample]] = {name: [] for name in pids}
        numbers, done = iter(range(plan.requests)), 0
        began, every = loop.time(), max(1, plan.requests // _SAMPLES)

        async def person() -> None:
            nonlocal done
            for _ in numbers:
                kind, body = bodies.draw(draws)
                outcome = await _ask(api, kind, body, http, draws.randint(0, plan.words))
                outcomes[f"{kind}: {outcome}"] += 1
                if outcome not in _EXPECTED[kind] and len(unexpected) < 20:
                    unexpected.append(f"a request of the kind {kind!r} ended with {outcome!r}")
                done += 1
                told(done)
                if done % every == 0:
                    for name, pid in pids.items():
                        samples[name].append(_sample(pid, done))

        await asyncio.gather(*(person() for _ in range(plan.at_once)))
        seconds = loop.time() - began
        slots, unbalanced = await _until_idle(http, metrics)
    kept = {name: tuple(each) for name, each in samples.items()}
    return SoakReport(head, plan, seconds, dict(outcomes), tuple(unexpected), slots, unbalanced, kept)


_EXPECTED = {"chat": ("ok",), "stream": ("ok",), "picture": ("ok",), "left": ("left", "ok"), "bad picture": ("400",)}


class _Bodies:
    """Requests to choose from; drawing pictures anew for each would measure us."""

    def __init__(self, plan: SoakPlan) -> None:
        self._plan = plan
        self._pictures = [draw_picture((64 + 16 * number, 64), f"soak/{number}") for number in range(8)]
        whole = base64.b64decode(self._pictures[0].partition(",")[2])
        self._bad = [_data_url(data) for data in (whole[:200], b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(64), b"")]

    def draw(self, draws: random.Random) -> tuple[str, bytes]:
        plan, chance = self._plan, draws.random()
        if chance < plan.bad:
            return "bad picture", self._body(draws, draws.choice(self._bad), stream=draws.random() < 0.5)
        picture = draws.choice(self._pictures) if draws.random() < plan.pictures else None
        if chance < plan.bad + plan.aborted:
            # Long enough that nobody reads it to its end.
            return "left", self._body(draws, picture, stream=True, max_tokens=300, ignore_eos=True)
        if picture is not None:
            return "picture", self._body(draws, picture, stream=draws.random() < 0.5)
        stream = draws.random() < 0.5
        return "stream" if stream else "chat", self._body(draws, None, stream=stream)

    def _body(self, draws: random.Random, picture: str | None, *, stream: bool, **more: object) -> bytes:
        words = " ".join(f"word{draws.randrange(10_000)}" for _ in range(draws.randint(1, 2 * self._plan.words)))
        content: list[dict[str, Any]] = [{"type": "text", "text": words}]
        if picture is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": picture}})
        fields = {"max_tokens": draws.randint(1, self._plan.words), "stream": stream, "temperature": 0, **more}
        if draws.random() < 0.05:
            fields["n"] = 2
        messages = [{"role": "user", "content": content}]
        return json.dumps({"model": _MODEL, "messages": messages, **fields}).encode()


async def _ask(api: str, kind: str, body: bytes, http: aiohttp.ClientSession, leave_after: int) -> str:
    """What came of it; one that is to be left is closed after so many pieces, or before the first."""
    headers = {"Content-Type": "application/json"}
    try:
        async with asyncio.timeout(_ANSWER_S):
            asking = http.post(f"{api}/v1/chat/completions", data=body, headers=headers)
            if kind == "left" and leave_after == 0:
                task = asyncio.ensure_future(asking)
                await asyncio.sleep(0.002)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return "left"
            async with asking as answer:
                if kind == "left":
                    for _ in range(leave_after):
                        if not await answer.content.readany():
                            return "ok"
                    answer.close()
                    return "left"
                text = await answer.read()
                whole = b"[DONE]" in text or b'"finish_reason"' in text
                return str(answer.status) if answer.status != 200 else "ok" if whole else "cut short"
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__


async def _until_idle(http: aiohttp.ClientSession, metrics: dict[str, str]) -> tuple[int, int]:
    """Requests that still run or wait, and those of which nobody knows what became; both are 0 soon."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _IDLE_S
    while True:
        slots = unbalanced = 0
        for url, token in metrics.items():
            async with http.get(url, headers={"Authorization": f"Bearer {token}"}) as answer:
                found = Counter[str]()
                for family in text_string_to_metric_families(await answer.text()):
                    found[family.name] += int(
                        sum(sample.value for sample in family.samples if "_created" not in sample.name)
                    )
                slots += found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"]
                unbalanced += found["llava:requests_received"] - found["llava:requests_ended"]
        if not (slots or unbalanced) or loop.time() > deadline:
            return slots, unbalanced
        await asyncio.sleep(0.2)


def _sample(pid: int, done: int) -> Sample:
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    rss = descriptors = threads = 0
    for each in family:
        try:
            rss += each.memory_info().rss
            descriptors += each.num_fds()
            threads += each.num_threads()
        except psutil.NoSuchProcess:
            continue
    return Sample(done, rss / 2**20, descriptors, threads)


def _trend(samples: Sequence[Sample], what: str) -> Trend:
    settled = samples[int(len(samples) * _SETTLED) :]
    values = [float(getattr(sample, what)) for sample in settled]
    if len(values) < 4:
        raise EngineFailure("too few samples; ask for more --requests")
    quarter = len(values) // 4
    line = statistics.linear_regression([sample.requests / 1000 for sample in settled], values)
    return Trend(statistics.median(values[:quarter]), statistics.median(values[-quarter:]), line.slope)


@asynccontextmanager
async def _topology(plan: SoakPlan) -> AsyncIterator[tuple[str, dict[str, int], dict[str, str]]]:
    """The address of the API, the processes, and where their metrics are with what opens them."""
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(running_controller())
        controller, pids, token = there.url, {"controller": there.pid}, known_token(there.url) or ""
        metrics = {f"{controller}/metrics": token}
        flags = ["--model-name", _MODEL, "--controller", controller, "--max-waiting", str(4 * plan.at_once)]
        if plan.model_path is None:
            flags += ["--engine", "echo", "--echo-delay", str(plan.word_ms / 1000)]
        else:
            flags += ["--model-path", plan.model_path]
        for number in range(plan.workers):
            worker, pid = await stack.enter_async_context(running("serve.model_worker", (*flags, *plan.flags)))
            pids[f"worker {number + 1}"] = pid
            metrics[f"{worker}/metrics"] = token
        await until_listed(controller, plan.workers)
        yield there.api, pids, metrics


def _data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
