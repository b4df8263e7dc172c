"""Thousands of mixed requests, some given up half-way, some with broken pictures: does anything grow that must not?"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from llava_core.errors import EngineFailure
from serve.bench.children import ROOT, running, running_controller, until_listed
from serve.bench.overload import connector
from serve.bench.report import Head
from serve.bench.soak_requests import EXPECTED, MODEL, Bodies, ask_once
from serve.credentials import known_token

_IDLE_S = 60.0
_SAMPLES = 100
_SETTLED = 0.1
"""Of a run: caches fill and buffers grow to their size; what comes after it counts."""
_TINY_FLAGS = ("--device", "cpu", "--dtype", "float32", "--threads", "1", "--kv-memory", "8MiB")
"""So little memory for chats that it is full, and taken again and again, long before the end."""
MOST_GROWTH = {"rss_mib": 12.0, "descriptors": 4.0, "threads": 2.0}
"""From the first quarter's median to the last one's, in 20,000 requests or in 200; of descriptors between two rests,
since how many connections are open meanwhile goes with the pace."""
_REST_S = 6.5
"""Until connections that nobody uses are closed."""


@dataclass(frozen=True)
class SoakPlan:
    """`aborted` and `bad` are shares of the requests. Without `model_path` the engine is echo, unless `tiny` has ours
    run a random checkpoint that is made for it."""

    requests: int = 20_000
    at_once: int = 16
    workers: int = 2
    aborted: float = 0.10
    bad: float = 0.05
    pictures: float = 0.2
    words: int = 12
    word_ms: float = 1.0
    model_path: str | None = None
    tiny: bool = False
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
    none; `unbalanced` are those that came in and of which nobody knows what became; `kv_running` is the share of an
    engine's memory for chats that is still taken by running ones."""

    head: Head
    plan: SoakPlan
    seconds: float
    outcomes: dict[str, int]
    unexpected: tuple[str, ...]
    slots: int
    unbalanced: int
    kv_running: float
    samples: dict[str, tuple[Sample, ...]]
    at_rest: dict[str, tuple[Sample, Sample]]
    """Once everything had settled and at the end, with nothing to do for a while."""
    kind: Literal["soak"] = "soak"

    def trends(self) -> dict[str, dict[str, Trend]]:
        found: dict[str, dict[str, Trend]] = {}
        for name, samples in self.samples.items():
            found[name] = {what: _trend(samples, what) for what in MOST_GROWTH}
            first, last = self.at_rest[name]
            grown = last.descriptors - first.descriptors
            pace = 1000 * grown / max(1, last.requests - first.requests)
            found[name]["descriptors"] = Trend(first.descriptors, last.descriptors, pace)
        return found

    def problems(self) -> list[str]:
        """What is not as it should be, in sentences."""
        found = [*self.unexpected]
        if self.slots or self.unbalanced:
            found.append(f"{self.slots} requests still run or wait, {self.unbalanced} are unaccounted for")
        if self.kv_running:
            found.append(f"{100 * self.kv_running:.2g} % of the memory for chats is still taken by running ones")
        for name, trends in self.trends().items():
            for what, most in MOST_GROWTH.items():
                if not trends[what].is_flat(most):
                    found.append(f"{what} of {name} grew from {trends[what].first:g} to {trends[what].last:g}")
        return found


async def bench_soak(plan: SoakPlan, head: Head, told: Callable[[int], None] = lambda done: None) -> SoakReport:
    """Controller and workers are processes of their own."""
    loop = asyncio.get_running_loop()
    async with _topology(plan) as (api, pids, metrics), aiohttp.ClientSession(connector=connector()) as http:
        draws, bodies = random.Random(plan.seed), Bodies(plan.words, plan.pictures, plan.aborted, plan.bad)
        outcomes, unexpected = Counter[str](), list[str]()
        samples: dict[str, list[Sample]] = {name: [] for name in pids}
        done = 0
        began, every = loop.time(), max(1, plan.requests // _SAMPLES)

        async def person(numbers: Iterator[int]) -> None:
            nonlocal done
            for _ in numbers:
                kind, body = bodies.draw(draws)
                outcome, sentence = await ask_once(api, kind, body, http, draws.randint(0, plan.words))
                outcomes[f"{kind}: {outcome}"] += 1
                if outcome not in EXPECTED[kind] and len(unexpected) < 20:
                    unexpected.append(f"a request of the kind {kind!r} ended with {outcome!r}: {sentence}")
                done += 1
                told(done)
                if done % every == 0:
                    for name, pid in pids.items():
                        samples[name].append(_sample(pid, done))

        async def ask(count: int) -> dict[str, Sample]:
            numbers = iter(range(count))
            await asyncio.gather(*(person(numbers) for _ in range(plan.at_once)))
            await asyncio.sleep(_REST_S)
            return {name: _sample(pid, done) for name, pid in pids.items()}

        settling = int(plan.requests * _SETTLED)
        settled = await ask(settling)
        ended = await ask(plan.requests - settling)
        seconds = loop.time() - began - 2 * _REST_S
        left = await _until_idle(http, metrics)
    kept = {name: tuple(each) for name, each in samples.items()}
    at_rest = {name: (settled[name], ended[name]) for name in pids}
    return SoakReport(head, plan, seconds, dict(outcomes), tuple(unexpected), *left, kept, at_rest)


async def _until_idle(http: aiohttp.ClientSession, metrics: dict[str, str]) -> tuple[int, int, float]:
    """Requests that still run or wait, those of which nobody knows what became, and the share of the engines' memory
    that running ones take; all are 0 soon."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _IDLE_S
    while True:
        slots = unbalanced = 0
        kv_running = 0.0
        for url, token in metrics.items():
            async with http.get(url, headers={"Authorization": f"Bearer {token}"}) as answer:
                found = defaultdict[str, float](float)
                for family in text_string_to_metric_families(await answer.text()):
                    found[family.name] += sum(
                        sample.value for sample in family.samples if "_created" not in sample.name
                    )
                slots += int(found["vllm:num_requests_running"] + found["vllm:num_requests_waiting"])
                unbalanced += int(found["llava:requests_received"] - found["llava:requests_ended"])
                kv_running += found["vllm:kv_cache_usage_perc"]
        if not (slots or unbalanced or kv_running) or loop.time() > deadline:
            return slots, unbalanced, kv_running
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
        flags = ["--model-name", MODEL, "--controller", controller, "--max-waiting", str(4 * plan.at_once)]
        if plan.tiny:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llava-serve-soak-")))
            await asyncio.to_thread(_build, folder)
            flags += ["--model-path", str(folder), *_TINY_FLAGS]
        elif plan.model_path is not None:
            flags += ["--model-path", plan.model_path]
        else:
            flags += ["--engine", "echo", "--echo-delay", str(plan.word_ms / 1000)]
        for number in range(plan.workers):
            worker, pid = await stack.enter_async_context(running("serve.model_worker", (*flags, *plan.flags)))
            pids[f"worker {number + 1}"] = pid
            metrics[f"{worker}/metrics"] = token
        await until_listed(controller, plan.workers)
        yield there.api, pids, metrics


def _build(folder: Path) -> None:
    """In a process of its own, so that what asks stays small."""
    made = (
        "import sys, pathlib, llava_core.checkpoints.tiny as tiny; tiny.build_tiny('llava', pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", made, str(folder)], cwd=ROOT, check=True, capture_output=True)
