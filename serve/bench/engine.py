"""The engine alone against `generate`, neither behind HTTP, in turns, beside the machine's own limit."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from llava_core.config import EngineLimits
from llava_core.engines.base import Engine
from llava_core.engines.load import EngineOptions, load_engine
from llava_core.errors import EngineFailure
from llava_core.types import Chunk, Request
from serve.bench.aside import baseline_aside, limits_of
from serve.bench.bandwidth import Limits, WeightFacts
from serve.bench.compare import Line, alternate, compare_figures
from serve.bench.generate import GenerateEngine
from serve.bench.load import run_load
from serve.bench.plan import LoadPlan
from serve.bench.records import Answer, figures, summarise
from serve.bench.report import Head
from serve.bench.target import Target

E = TypeVar("E", bound=Engine)

ONE_STREAM = "one stream, tokens/s"
CONTEXT = "earlier tokens of an average one"
GROWTH = "first token, last turn over turn 2"


@dataclass(frozen=True)
class EnginePlan:
    """Three loads: one chat of `long_turns` turns, one long text prompt, and `users` people with `turns` turns."""

    rounds: int = 3
    users: int = 8
    turns: int = 3
    long_turns: int = 10
    max_tokens: int = 32
    prefill_words: int = 600
    prompt_words: int = 12
    images: int = 1
    image_size: tuple[int, int] = (672, 448)
    with_generate: bool = True
    seed: int = 0

    def alone(self, number: int) -> LoadPlan:
        return self._load(number, users=1, turns=self.long_turns)

    def warm_up(self) -> LoadPlan:
        return replace(self.alone(-1), turns=2, max_tokens=4)

    def prefill(self, number: int) -> LoadPlan:
        return self._load(number, users=1, turns=1, images=0, prompt_words=self.prefill_words, max_tokens=1)

    def crowd(self, number: int) -> LoadPlan:
        return self._load(number, users=self.users, turns=self.turns)

    def _load(self, number: int, **changes: Any) -> LoadPlan:
        plan = LoadPlan(
            images=self.images,
            image_size=self.image_size,
            prompt_words=self.prompt_words,
            max_tokens=self.max_tokens,
            ignore_eos=True,
            seed=self.seed,
        )
        return replace(plan, **changes).after(number)


@dataclass(frozen=True)
class DecodeLimit:
    """One stream beside what the machine could do: medians over the rounds, shares of each round's own limit."""

    weights: WeightFacts
    context: float
    """Earlier tokens of an average generated one."""
    read_gb_per_s: float
    limit_tokens_per_s: float
    reached: float
    share: float
    weights_pass_tokens_per_s: float
    """One vector times each of the model's own matrices, by torch, and nothing else."""
    share_of_pass: float


@dataclass(frozen=True)
class EngineReport:
    head: Head
    model: str
    dtype: str
    plan: EnginePlan
    lines: tuple[Line, ...]
    """a is the engine, b is generate."""
    alone: Mapping[str, float]
    """The engine's own medians."""
    limit: DecodeLimit
    generate_dtype: str = ""
    kind: Literal["engine"] = "engine"


@dataclass(frozen=True)
class InProcess:
    """An engine as a target."""

    engine: Engine

    @property
    def model(self) -> str:
        return self.engine.info.name

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return self.engine.generate(request)


async def bench_engine(
    options: EngineOptions,
    plan: EnginePlan,
    head: Callable[[int, str], Head],
    *,
    told: Callable[[str], None],
    generate_dtype: str | None = None,
) -> EngineReport:
    """Load the checkpoint here, and for `generate` and the machine's limits in a process of its own, and measure them
    in turns; `told` hears what is being done. `head` is given torch's threads and the device. `generate_dtype` is the
    baseline's precision where it is not the engine's."""
    from llava_core.engines.transformers.threads import count_threads

    told("loading")
    options = replace(options, limits=replace(EngineLimits(), max_running=max(8, plan.users), max_wait_s=3600.0))
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(_closing(load_engine("transformers", options)))
        # What the engine's `auto` has become.
        same = replace(options, device=engine.info.device, dtype=engine.info.dtype)
        machine = await stack.enter_async_context(baseline_aside(same, told=told))
        baseline = machine
        if plan.with_generate and generate_dtype not in (None, engine.info.dtype):
            other = replace(same, dtype=generate_dtype or "auto")
            baseline = await stack.enter_async_context(baseline_aside(other, told=told))
        ours, limits = InProcess(engine), list[Limits]()
        told("warming up")
        await run_load(plan.warm_up(), ours)
        if plan.with_generate:
            await baseline.run(WarmUpBaseline(plan))
        facts: WeightFacts | None = None

        async def run_ours(number: int) -> dict[str, float]:
            nonlocal facts
            facts, found = await machine.run(limits_of)
            limits.append(found)
            return await measure(plan, ours, number, told)

        async def run_theirs(number: int) -> dict[str, float]:
            return await baseline.run(MeasureBaseline(plan, number)) if plan.with_generate else {}

        rounds = await alternate(plan.rounds, run_ours, run_theirs)
        info = engine.info
    assert facts is not None
    measured = [figures for figures, _ in rounds]
    alone = {name: statistics.median(each[name] for each in measured) for name in measured[0]}
    return EngineReport(
        head(count_threads(options.batch.threads), _device_name(info.device)),
        info.name,
        info.dtype,
        plan,
        tuple(line for line in compare_figures(rounds) if line.name != CONTEXT),
        alone,
        _decode_limit(facts, limits, [each[ONE_STREAM] for each in measured], alone[CONTEXT]),
        generate_dtype or info.dtype,
    )


@dataclass(frozen=True)
class MeasureBaseline:
    """A job of the baseline's process: one round."""

    plan: EnginePlan
    number: int

    async def __call__(self, engine: GenerateEngine, told: Callable[[str], None]) -> dict[str, float]:
        return await measure(self.plan, InProcess(engine), self.number, told)


@dataclass(frozen=True)
class WarmUpBaseline:
    plan: EnginePlan

    async def __call__(self, engine: GenerateEngine, told: Callable[[str], None]) -> None:
        await run_load(self.plan.warm_up(), InProcess(engine))


async def measure(plan: EnginePlan, target: Target, number: int, told: Callable[[str], None]) -> dict[str, float]:
    """The figures of one target in one round. Raises what an answer failed with."""

    def tell(what: str) -> None:
        told(f"round {number + 1} of {plan.rounds}: {_name(target)}, {what}")

    found: dict[str, float] = {}
    tell("one chat")
    answers = await _run(plan.alone(number), target)
    one = summarise(answers)
    found[ONE_STREAM] = one.stream_tokens_per_s.p50 if one.stream_tokens_per_s else 0.0
    found[CONTEXT] = statistics.mean(answer.prompt_tokens + answer.completion_tokens / 2 for answer in answers)
    found |= {f"first token alone, turn {turn}, s": spread.p50 for turn, spread in one.first_s.items()}
    last = max(one.first_s)
    if last > 2:
        found[GROWTH] = one.first_s[last].p50 / one.first_s[2].p50
    tell("a long prompt")
    (prefill,) = await _run(plan.prefill(number), target)
    found["prefill, tokens/s"] = prefill.prompt_tokens / prefill.total_s
    tell(f"{plan.users} users")
    crowd = figures(summarise(await _run(plan.crowd(number), target)))
    return found | {f"{plan.users} users: {name}": value for name, value in crowd.items()}


async def _run(plan: LoadPlan, target: Target) -> list[Answer]:
    answers = await run_load(plan, target)
    failed = next((answer for answer in answers if answer.error is not None), None)
    if failed is not None:
        raise EngineFailure(f"an answer failed, so nothing can be compared: {failed.error}: {failed.message}")
    return answers


def _decode_limit(facts: WeightFacts, limits: list[Limits], reached: list[float], context: float) -> DecodeLimit:
    possible = [each.tokens_per_s(facts, context) for each in limits]
    return DecodeLimit(
        weights=facts,
        context=context,
        read_gb_per_s=statistics.median(each.read_bytes_per_s for each in limits) / 1e9,
        limit_tokens_per_s=statistics.median(possible),
        reached=statistics.median(reached),
        share=statistics.median(got / most for got, most in zip(reached, possible, strict=True)),
        weights_pass_tokens_per_s=statistics.median(1 / each.pass_s for each in limits),
        share_of_pass=statistics.median(got * each.pass_s for got, each in zip(reached, limits, strict=True)),
    )


@asynccontextmanager
async def _closing(engine: E) -> AsyncIterator[E]:
    try:
        yield engine
    finally:
        await engine.aclose()


def _name(target: Target) -> str:
    engine = getattr(target, "engine", None)
    return "generate" if isinstance(engine, GenerateEngine) else "engine"


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
