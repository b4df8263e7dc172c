"""Reports of overload and of thousands of requests as tables on a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from rich.console import Console

from serve.bench.overload import OverloadReport, OverloadRound
from serve.bench.records import Spread
from serve.bench.soak import MOST_GROWTH, SoakReport
from serve.bench.tables import new_table, number, print_head


def print_overload(console: Console, report: OverloadReport) -> None:
    print_head(console, report.head)
    plan = report.plan
    pictures = f"{plan.images} pictures of {plan.image_size[0]}x{plan.image_size[1]}" if plan.images else "no pictures"
    engine = "echo workers" if plan.model_path is None else f"workers with {plan.model_path}"
    words = f"words, {plan.word_ms:g} ms between them" if plan.model_path is None else "tokens"
    way = "to a worker itself" if plan.direct else "through the controller's /v1"
    what = (
        f"{plan.workers} {engine}, {plan.running} running and {plan.waiting} waiting at each; answers of "
        f"{plan.words} {words}; {pictures}; {way}; "
        f"{plan.factor:g} times the capacity for {plan.seconds:g} s; {plan.rounds} rounds"
    )
    console.print(what, style="dim", markup=False, highlight=False, soft_wrap=True)
    table = new_table("medians of the rounds", "", "median", "lowest", "highest")

    def row(name: str, read: Callable[[OverloadRound], float | None], unit: str = "") -> None:
        values = [value for each in report.rounds if (value := read(each)) is not None]
        if values:
            figures = (statistics.median(values), min(values), max(values))
            table.add_row(name, *(f"{number(figure)}{unit}" for figure in figures))

    row("capacity, answers/s", lambda each: each.capacity)
    row("requests", lambda each: each.asked)
    row("served", lambda each: each.served)
    row("refused", lambda each: each.refused)
    row("failed", lambda each: each.failed)
    row("goodput, of the capacity", lambda each: 100 * each.goodput, " %")
    row("refusal, p50", lambda each: _p50(each.refusal_ms), " ms")
    row("refusal, p95", lambda each: _p95(each.refusal_ms), " ms")
    row("first token of the served, p50", lambda each: _p50(each.first_ms), " ms")
    row("first token of the served, p95", lambda each: _p95(each.first_ms), " ms")
    row("a full queue, answered in", lambda each: each.queue_ms, " ms")
    for name in report.rounds[0].live_ms:
        row(f"/health/live of {name}, p95", lambda each, name=name: _p95(each.live_ms[name]), " ms")
    row("late, the load itself, p95", lambda each: _p95(each.late_ms), " ms")
    console.print(table)


def print_soak(console: Console, report: SoakReport) -> None:
    print_head(console, report.head)
    asked = sum(report.outcomes.values())
    pace = asked / report.seconds if report.seconds else 0.0
    counts = ", ".join(f"{name} {count}" for name, count in sorted(report.outcomes.items()))
    for line in (f"{asked} requests in {report.seconds:.0f} s ({pace:.0f} a second): {counts}",):
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    table = new_table("with the processes it starts", "", "at first", "at last", "in 1,000 requests", "flat")
    names = {"rss_mib": "MiB", "descriptors": "descriptors", "threads": "threads"}
    for name, trends in report.trends().items():
        for what, trend in trends.items():
            flat = "yes" if trend.is_flat(MOST_GROWTH[what]) else "NO"
            table.add_row(
                f"{name}, {names[what]}", f"{trend.first:.1f}", f"{trend.last:.1f}", f"{trend.per_1000:+.2f}", flat
            )
    console.print(table)
    line = (
        f"{report.slots} requests still run or wait, {report.unbalanced} are unaccounted for, "
        f"{100 * report.kv_running:g} % of the engines' memory is taken by running ones"
    )
    for text in (line, *report.problems()):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _p50(spread: Spread | None) -> float | None:
    return None if spread is None else spread.p50


def _p95(spread: Spread | None) -> float | None:
    return None if spread is None else spread.p95
