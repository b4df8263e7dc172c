"""Reports as files: JSON that can be read back, and a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from llava_core.errors import BadRequest, MissingDependency
from serve.bench.machine import Machine
from serve.bench.plan import LoadPlan
from serve.bench.records import Answer, Summary

R = TypeVar("R")


@dataclass(frozen=True)
class Head:
    """What stands above every table: how it was measured."""

    command: str
    machine: Machine
    date: str


@dataclass(frozen=True)
class LoadReport:
    head: Head
    target: str
    model: str
    plan: LoadPlan
    summary: Summary
    answers: tuple[Answer, ...] = ()
    kind: Literal["load"] = "load"


def write_json(path: Path, report: Any) -> None:
    """Raises BadRequest where the file cannot be written."""
    try:
        path.write_bytes(TypeAdapter(type(report)).dump_json(report, indent=1) + b"\n")
    except OSError as cause:
        raise _unwritable(path, cause) from None


def read_json(path: Path, kind: type[R]) -> R:
    """A report of `kind` that `write_json` wrote. Raises BadRequest."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as cause:
        raise BadRequest(f"cannot read {path}: {cause.strerror}; check the name") from None
    except ValidationError:
        raise BadRequest(f"{path} holds no {kind.__name__}") from None


def check_writable(*paths: Path | None) -> None:
    """Before anything is measured: whether the files can be written. Raises BadRequest."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise BadRequest(f"{path} cannot be written: there is no such folder, or it is one; name a file")


def check_plot(path: Path | None) -> None:
    """Before anything is measured: whether a plot can be drawn. Raises MissingDependency."""
    if path is None:
        return
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependency(
            "--plot draws with matplotlib, which is not installed: pip install matplotlib"
        ) from None


@dataclass(frozen=True)
class Series:
    """One target's answers in a plot, of `rounds` loads whose times all begin at zero."""

    name: str
    answers: Sequence[Answer]
    rounds: int = 1


def write_plot(path: Path, series: Sequence[Series], title: str) -> None:
    """Raises MissingDependency, BadRequest."""
    check_plot(path)
    try:
        draw(series, title).savefig(path, dpi=120)
    except (OSError, ValueError) as cause:
        raise _unwritable(path, cause) from None


def draw(series: Sequence[Series], title: str) -> Any:
    """A figure: first token by turn, gaps between tokens, tokens a second over time, errors by class."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure: Any = Figure(figsize=(11, 8), layout="constrained")
    (first, gaps), (over_time, errors) = figure.subplots(2, 2)
    for number, one in enumerate(series):
        whole = [answer for answer in one.answers if answer.error is None]
        colour = f"C{number}"
        points = [(answer.turn, answer.first_s) for answer in whole if answer.first_s is not None]
        if points:
            shift = 0.12 * (number - (len(series) - 1) / 2)
            first.plot([turn + shift for turn, _ in points], [s for _, s in points], "o", ms=3, color=colour, alpha=0.5)
            turns = sorted({turn for turn, _ in points})
            middles = [sorted(s for t, s in points if t == turn) for turn in turns]
            first.plot(turns, [each[len(each) // 2] for each in middles], "-", color=colour, label=one.name)
        waits = sorted(1000 * gap for answer in whole for gap in answer.gaps_s)
        if waits:
            shares = [(rank + 1) / len(waits) for rank in range(len(waits))]
            gaps.plot(waits, shares, "-", color=colour, label=one.name)
        seconds, rates = _rates(whole, one.rounds)
        over_time.plot(seconds, rates, "-", color=colour, label=one.name)
    _draw_errors(errors, series)
    first.set(xlabel="turn", ylabel="seconds to the first token", ylim=(0, None))
    first.xaxis.get_major_locator().set_params(integer=True)
    gaps.set(xlabel="milliseconds between tokens", ylabel="share of gaps below", ylim=(0, 1))
    over_time.set(xlabel="seconds since the start", ylabel="pieces of text a second", ylim=(0, None))
    for axes in (first, gaps, over_time, errors):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_errors(axes: Any, series: Sequence[Series]) -> None:
    """Requests that failed, by class and target, out of how many."""
    failed = [Counter(answer.error for answer in one.answers if answer.error is not None) for one in series]
    kinds = sorted({kind for each in failed for kind in each})
    width = 0.8 / max(1, len(series))
    for number, (one, counts) in enumerate(zip(series, failed, strict=True)):
        label = f"{one.name}: {sum(counts.values())} of {len(one.answers)}"
        places = [at + width * (number - (len(series) - 1) / 2) for at in range(len(kinds))]
        axes.bar(places, [counts[kind] for kind in kinds], width, color=f"C{number}", label=label)
    axes.set(ylabel="requests that failed", ylim=(0, None if kinds else 1))
    axes.set_xticks(range(len(kinds)), kinds)
    axes.yaxis.get_major_locator().set_params(integer=True)
    if not kinds:
        axes.text(0.5, 0.5, "no errors", ha="center", va="center", transform=axes.transAxes)


def _rates(answers: Sequence[Answer], rounds: int, steps: int = 60) -> tuple[list[float], list[float]]:
    """Pieces of text a second in equal slices of the whole time, of an average round."""
    times: list[float] = []
    for answer in answers:
        if answer.first_s is not None:
            at = answer.started_s + answer.first_s
            times.append(at)
            for gap in answer.gaps_s:
                at += gap
                times.append(at)
    if not times or max(times) <= 0:
        return [], []
    width = max(times) / steps
    counts = [0] * (steps + 1)
    for at in times:
        counts[int(at / width)] += 1
    return [(slot + 0.5) * width for slot in range(steps)], [count / width / rounds for count in counts[:steps]]


def _unwritable(path: Path, cause: Exception) -> BadRequest:
    return BadRequest(f"cannot write {path}: {cause}; name another file")
