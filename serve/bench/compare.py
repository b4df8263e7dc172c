"""Two targets under the same load, in turns, so that whatever else the machine does falls on both."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from llava_core.config import ClientTimings
from llava_core.errors import BadRequest
from serve.bench.children import READY_S, running
from serve.bench.plan import LoadPlan
from serve.bench.records import Summary
from serve.bench.report import Head
from serve.bench.target import HttpTarget

T = TypeVar("T")

PATIENT = ClientTimings(first_token_s=1800.0, between_tokens_s=600.0)
"""A slow target is to be measured, not given up."""


@dataclass(frozen=True)
class Line:
    """One figure of both; `ratio` is the median of the rounds' own ratios, which lay between `low` and `high`."""

    name: str
    a: float
    b: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Round:
    a: Summary
    b: Summary
    first: Literal["a", "b"]
    """Which of them went first."""


@dataclass(frozen=True)
class CompareReport:
    head: Head
    a: str
    b: str
    plan: LoadPlan
    rounds: tuple[Round, ...]
    lines: tuple[Line, ...]
    kind: Literal["compare"] = "compare"


async def alternate(
    rounds: int, run_a: Callable[[int], Awaitable[T]], run_b: Callable[[int], Awaitable[T]]
) -> list[tuple[T, T]]:
    """Both, `rounds` times; each time the one that was last goes first. They are told the round's number."""
    results: list[tuple[T, T]] = []
    for number in range(rounds):
        if number % 2 == 0:
            a = await run_a(number)
            results.append((a, await run_b(number)))
        else:
            b = await run_b(number)
            results.append((await run_a(number), b))
    return results


def compare_figures(rounds: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> tuple[Line, ...]:
    """Medians over the rounds, and medians of the ratios within each round, for figures that both have."""
    names = [name for name in rounds[0][0] if all(name in a and name in b for a, b in rounds)] if rounds else []
    lines: list[Line] = []
    for name in names:
        pairs = [(a[name], b[name]) for a, b in rounds]
        ratios = [a / b for a, b in pairs if b]
        if ratios:
            lines.append(
                Line(
                    name,
                    statistics.median(a for a, _ in pairs),
                    statistics.median(b for _, b in pairs),
                    statistics.median(ratios),
                    min(ratios),
                    max(ratios),
                )
            )
    return tuple(lines)


@dataclass(frozen=True)
class Start:
    """How a named target is started here."""

    model_path: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    users: int = 1
    ready_s: float = READY_S
    api_key: str | None = None


def check_name(name: str, start: Start) -> None:
    """Raises BadRequest for what is neither a known name nor an address."""
    kind, _, count = name.partition(":")
    if kind in ("ours", "generate"):
        if not start.model_path:
            raise BadRequest(
                f"{kind!r} is started here and needs a checkpoint: --model-path PATH", param="--model-path"
            )
        if count and not (kind == "generate" and count.isdecimal() and int(count) > 0):
            raise BadRequest(f"{name!r} is no target; generate:4 runs four requests at once, ours takes no number")
    elif "://" not in name:
        raise BadRequest(f"{name!r} is no target; there are: ours, generate, generate:N, and addresses like URL#MODEL")


@asynccontextmanager
async def open_target(name: str, start: Start) -> AsyncGenerator[HttpTarget]:
    """`ours`, `generate` or `generate:N` in a process of their own, or what is at an address `URL#MODEL`."""
    check_name(name, start)
    if "://" in name:
        url, _, model = name.partition("#")
        async with HttpTarget(url, model, api_key=start.api_key, timings=PATIENT) as target:
            await target.open()
            yield target
        return
    kind, _, count = name.partition(":")
    flags = ["--model-path", str(start.model_path), "--device", start.device, "--dtype", start.dtype]
    if kind == "generate":
        module, flags = "serve.bench", ["baseline", *flags, "--at-once", count or "1"]
    else:
        module, flags = "serve.model_worker", [*flags, "--no-register"]
        flags += ["--limit-model-concurrency", str(max(8, start.users)), "--max-waiting", str(max(64, start.users))]
    async with (
        running(module, flags, ready_s=start.ready_s) as (url, _),
        HttpTarget(url, timings=PATIENT) as target,
    ):
        await target.open()
        yield target
