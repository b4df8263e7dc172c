"""Reports as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from serve.bench.machine import describe_machine
from serve.bench.plan import LoadPlan
from serve.bench.records import Spread, Summary
from serve.bench.report import Head, LoadReport


def print_head(console: Console, head: Head) -> None:
    """How it was measured, above every table."""
    for line in (head.date, head.command, describe_machine(head.machine)):
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)


def print_load(console: Console, report: LoadReport) -> None:
    summary = report.summary
    print_head(console, report.head)
    console.print(describe_plan(report.plan), style="dim", markup=False, highlight=False, soft_wrap=True)
    table = new_table(f"{report.model} at {report.target}", "", "p50", "p95", "n")
    for turn, spread in summary.first_s.items():
        table.add_row(f"first token, turn {turn}", *_spread(spread, 1, "s"))
    table.add_row("between tokens", *_spread(summary.gap_s, 1000, "ms"))
    table.add_row("tokens/s of one stream", *_spread(summary.stream_tokens_per_s, 1, ""))
    console.print(table)
    for line in summary_lines(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary_lines(summary: Summary) -> list[str]:
    unit = "tokens" if summary.counted else "pieces of text (the server counts no tokens)"
    lines = [
        f"{number(summary.tokens_per_s)} {unit} a second in all: {summary.completion_tokens} in "
        f"{number(summary.wall_s)} s, {summary.requests} requests",
    ]
    if summary.counted and summary.prompt_tokens:
        cached = 100 * summary.cached_tokens / summary.prompt_tokens
        lines.append(
            f"prompts: {summary.prompt_tokens} tokens, {summary.cached_tokens} of them cached ({cached:.0f} %), "
            f"{summary.image_tokens} of them for pictures"
        )
    for name, count in summary.errors.items():
        lines.append(f"{count} x {name}: {summary.error_messages[name]}")
    return lines if summary.errors else [*lines, "no errors"]


def describe_plan(plan: LoadPlan) -> str:
    """One line for people."""
    width, height = plan.image_size
    which = "the same" if plan.same_picture else "each its own"
    who = f"{plan.users} users"
    if plan.request_rate is not None:
        length = f"for {plan.duration_s:g} s" if plan.duration_s is not None else f"{plan.chats} chats"
        who = f"{plan.request_rate:g} requests a second, {length}"
    elif plan.duration_s is not None:
        who += f" for {plan.duration_s:g} s"
    parts = [
        who,
        f"{plan.turns} turns" + (f" x {plan.rounds} rounds" if plan.rounds > 1 else ""),
        f"{plan.images} pictures a chat ({width}x{height}, {which})" if plan.images else "no pictures",
        f"{plan.prompt_words} words a question",
        f"{'exactly' if plan.ignore_eos else 'at most'} {plan.max_tokens} tokens an answer",
        f"temperature {plan.temperature:g}",
        f"{plan.think_time_s:g} s to think" if plan.think_time_s else "",
        f"{plan.warm_up} warm-up chats" if plan.warm_up else "",
        f"seed {plan.seed}",
    ]
    return ", ".join(part for part in parts if part)


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if at == 0 else "right")
    return table


def number(value: float | None) -> str:
    """Three figures that matter, without powers of ten."""
    if value is None:
        return "–"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def _spread(spread: Spread | None, factor: float, unit: str) -> tuple[str, str, str]:
    if spread is None:
        return "–", "–", "0"
    after = f" {unit}" if unit else ""
    return f"{number(spread.p50 * factor)}{after}", f"{number(spread.p95 * factor)}{after}", str(spread.count)
