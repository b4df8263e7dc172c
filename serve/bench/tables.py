"""Reports as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from serve.bench.compare import CompareReport, Line
from serve.bench.engine import EngineReport
from serve.bench.machine import describe_machine
from serve.bench.overhead import OverheadReport
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


def print_compare(console: Console, report: CompareReport) -> None:
    print_head(console, report.head)
    console.print(describe_plan(report.plan), style="dim", markup=False, highlight=False, soft_wrap=True)
    count = len(report.rounds)
    a, b = short_names(report.a, report.b)
    title = f"medians of {count} rounds in turns; ratios are {a} : {b}, medians of the rounds' own"
    console.print(_lines_table(title, report.lines, a, b))
    for name, summaries in (
        (a, [each.a for each in report.rounds]),
        (b, [each.b for each in report.rounds]),
    ):
        for number_, summary in enumerate(summaries, 1):
            for line in summary_lines(summary):
                console.print(f"{name}, round {number_}: {line}", markup=False, highlight=False, soft_wrap=True)


def print_engine(console: Console, report: EngineReport) -> None:
    print_head(console, report.head)
    plan, limit = report.plan, report.limit
    what = (
        f"{report.model}, {limit.weights.parameters / 1e6:,.0f} million weights in {report.dtype}{_theirs(report)}; "
        f"one chat of {plan.long_turns} turns, a prompt of {plan.prefill_words} words, {plan.users} users x "
        f"{plan.turns} turns; {plan.images} pictures a chat, {plan.max_tokens} tokens an answer, greedy; "
        f"{plan.rounds} rounds"
    )
    console.print(what, style="dim", markup=False, highlight=False, soft_wrap=True)
    if report.lines:
        title = "medians; ratios are engine : generate, medians of the rounds' own"
        console.print(_lines_table(title, report.lines, "engine", "generate"))
    else:
        table = new_table("medians", "", "engine")
        for name, value in report.alone.items():
            table.add_row(name, number(value))
        console.print(table)
    table = new_table("one stream against the machine", "", "")
    table.add_row("memory read by torch", f"{number(limit.read_gb_per_s)} GB/s")
    table.add_row("weights read for a token", f"{number(limit.weights.bytes / 1e6)} MB")
    table.add_row(
        f"keys and values read, {limit.context:.0f} tokens",
        f"{number(limit.context * limit.weights.kv_bytes / 1e6)} MB",
    )
    table.add_row("limit", f"{number(limit.limit_tokens_per_s)} tokens/s")
    table.add_row("reached", f"{number(limit.reached)} tokens/s")
    table.add_row("share of the limit", f"{100 * limit.share:.0f} %")
    table.add_row("the weights' products alone", f"{number(limit.weights_pass_tokens_per_s)} tokens/s")
    table.add_row("share of that", f"{100 * limit.share_of_pass:.0f} %")
    console.print(table)


def _theirs(report: EngineReport) -> str:
    other = report.generate_dtype
    return f" (generate in {other})" if other not in ("", report.dtype) else ""


def print_overhead(console: Console, report: OverheadReport) -> None:
    print_head(console, report.head)
    plan = report.plan
    what = (
        f"echo engine; 1 user: {plan.requests} answers of {plan.max_tokens} words without pause; "
        f"{plan.streams} streams: {plan.token_ms:g} ms between words; {plan.rounds} rounds"
    )
    console.print(what, style="dim", markup=False, highlight=False, soft_wrap=True)
    for way, lines in report.lines.items():
        title = f"{way}: {report.added_ms[way]:+.2f} ms an answer"
        console.print(_lines_table(title, lines, "through", "engine itself"))
    line = f"the worker spends {report.cpu_us_per_token:.0f} microseconds of a core on each token it sends"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines_table(title: str, lines: Sequence[Line], a: str, b: str) -> Table:
    table = new_table(title, "", a, b, "ratio", "lowest", "highest")
    for line in lines:
        values = (line.a, line.b, line.ratio, line.low, line.high)
        table.add_row(line.name, *(number(value) for value in values))
    return table


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
        table.add_column(name, justify="left" if at == 0 else "right", no_wrap=at > 0)
    return table


def short_names(a: str, b: str) -> tuple[str, str]:
    """What two targets are called at the head of a column: an address by its model, or by its host where that is
    the same or not named."""

    def model(name: str) -> str:
        return name.partition("#")[2] or host(name)

    def host(name: str) -> str:
        return name.partition("#")[0].partition("://")[2].rstrip("/").removesuffix("/v1") or name

    if model(a) != model(b):
        return model(a), model(b)
    return (host(a), host(b)) if host(a) != host(b) else (f"{model(a)} (A)", f"{model(b)} (B)")


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
