"""What HTTP, server-sent events and the controller add to an engine that itself costs next to nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from llava_core.config import EngineLimits
from llava_core.engines.echo import EchoEngine
from llava_core.errors import EngineFailure
from llava_core.types import Chunk, Request
from serve.bench.children import running, running_controller, until_listed
from serve.bench.compare import Line, alternate, compare_figures
from serve.bench.engine import InProcess
from serve.bench.load import run_load
from serve.bench.plan import LoadPlan
from serve.bench.records import Spread, summarise
from serve.bench.report import Head
from serve.bench.target import HttpTarget, Target
from serve.client import Client


@dataclass(frozen=True)
class OverheadPlan:
    """`requests` answers of `max_tokens` words one after the other without any pause between words, then `streams`
    side by side with `token_ms` between their words."""

    rounds: int = 3
    requests: int = 50
    streams: int = 32
    max_tokens: int = 32
    token_ms: float = 20.0
    seed: int = 0

    def alone(self, number: int) -> LoadPlan:
        return replace(self._load(1, self.requests), warm_up=3).after(number)

    def together(self, number: int) -> LoadPlan:
        return replace(self._load(self.streams, 2), warm_up=1).after(number)

    def _load(self, users: int, rounds: int) -> LoadPlan:
        # Echo answers with the question, so that one as long as the answer is enough.
        words = self.max_tokens
        return LoadPlan(
            users=users, rounds=rounds, turns=1, images=0, prompt_words=words, max_tokens=words, seed=self.seed
        )


@dataclass(frozen=True)
class OverheadReport:
    """`lines` compare each way (a) with the engine itself (b); `added_ms` and `cpu_us_per_token` are medians."""

    head: Head
    plan: OverheadPlan
    lines: dict[str, tuple[Line, ...]]
    added_ms: dict[str, float]
    """By way: a whole answer's time at 1 user, less the engine's own."""
    cpu_us_per_token: float
    """Processor time of the worker for each token that it sent, the echo engine's own part included."""
    kind: Literal["overhead"] = "overhead"


@dataclass(frozen=True)
class ThroughClient:
    """The way of page and terminal: ask the controller for a worker, stream from it."""

    client: Client
    model: str

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return self.client.stream(request)


@dataclass(frozen=True)
class _Ways:
    direct: Target
    others: dict[str, Target]
    worker: int


async def bench_overhead(plan: OverheadPlan, head: Head) -> OverheadReport:
    instant = await _compare(plan, 0.0, alone=True)
    paced = await _compare(plan, plan.token_ms / 1000, alone=False)
    lines = {name: (*instant[0][name], *paced[0][name]) for name in instant[0]}
    added = {name: each[0].a - each[0].b for name, each in instant[0].items()}
    return OverheadReport(head, plan, lines, added, paced[1])


async def _compare(plan: OverheadPlan, delay_s: float, *, alone: bool) -> tuple[dict[str, tuple[Line, ...]], float]:
    """Each way against the engine itself, and the worker's processor time per token in microseconds."""
    async with _topology(plan, delay_s) as ways:
        lines: dict[str, tuple[Line, ...]] = {}
        cpu: list[float] = []
        for name, way in ways.others.items():

            async def through(number: int, way: Target = way) -> dict[str, float]:
                before = _cpu_s(ways.worker)
                found = await _measure(plan, way, number, alone=alone)
                cpu.append(1e6 * (_cpu_s(ways.worker) - before) / found.pop("made"))
                return found

            async def direct(number: int) -> dict[str, float]:
                found = await _measure(plan, ways.direct, number, alone=alone)
                del found["made"]
                return found

            lines[name] = compare_figures(await alternate(plan.rounds, through, direct))
        middle = Spread.of(cpu)
        return lines, middle.p50 if middle else 0.0


async def _measure(plan: OverheadPlan, target: Target, number: int, *, alone: bool) -> dict[str, float]:
    load = plan.alone(number) if alone else plan.together(number)
    answers = await run_load(load, target)
    summary = summarise(answers)
    whole = [answer for answer in answers if answer.error is None]
    total, first = Spread.of(answer.total_s for answer in whole), summary.first_s.get(1)
    if total is None or first is None or summary.errors:
        raise EngineFailure(f"answers failed, so nothing can be compared: {dict(summary.error_messages)}")
    made = {"made": float(summary.completion_tokens)}
    if alone:
        return made | {"1 user: whole answer, ms": 1000 * total.p50, "1 user: first token, ms": 1000 * first.p50}
    return made | {f"{plan.streams} streams: tokens/s": summary.tokens_per_s}


@asynccontextmanager
async def _topology(plan: OverheadPlan, delay_s: float) -> AsyncIterator[_Ways]:
    """An echo engine here, and the same one behind a worker and a controller in processes of their own."""
    limits = EngineLimits(max_running=plan.streams, max_waiting=plan.streams)
    async with AsyncExitStack() as stack:
        engine = EchoEngine("echo", limits=limits, delay_s=delay_s)
        stack.push_async_callback(engine.aclose)
        there = await stack.enter_async_context(running_controller())
        controller = there.url
        flags = ("--engine", "echo", "--model-name", "echo", "--echo-delay", str(delay_s), "--controller", controller)
        room = ("--limit-model-concurrency", str(plan.streams), "--max-waiting", str(plan.streams))
        worker, pid = await stack.enter_async_context(running("serve.model_worker", (*flags, *room)))
        client = await stack.enter_async_context(Client(controller))
        await until_listed(controller)
        at_worker = await stack.enter_async_context(HttpTarget(worker, "echo"))
        gateway = await stack.enter_async_context(HttpTarget(there.api, "echo"))
        others: dict[str, Target] = {
            "worker over HTTP": at_worker,
            "controller, then worker": ThroughClient(client, "echo"),
            "controller's /v1": gateway,
        }
        yield _Ways(InProcess(engine), others, pid)


def _cpu_s(pid: int) -> float:
    import psutil

    used = psutil.Process(pid).cpu_times()
    return used.user + used.system
