"""`page`: what the page server costs for each token it streams, beside a naive one."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from serve.bench import options as opt
from serve.bench.machine import now, this_command, this_machine
from serve.bench.page import PageFigures, PagePlan, bench_page
from serve.bench.report import Head, check_writable, write_json
from serve.bench.tables import new_table, print_head

_PLAN = PagePlan()


def page(
    chats: Annotated[int, typer.Option(min=1, max=200, help="People who chat at once.")] = _PLAN.chats,
    images: Annotated[int, typer.Option(min=0, max=8, help="Pictures in the history of each.")] = _PLAN.images,
    image_mb: Annotated[float, typer.Option(min=0.01, max=18, help="Megabytes of each picture.")] = _PLAN.image_mb,
    tokens: Annotated[int, typer.Option(min=1, max=2000, help="Words of an answer.")] = _PLAN.tokens,
    token_ms: Annotated[float, typer.Option(min=0, help="Milliseconds between two words.")] = _PLAN.token_ms,
    rounds: Annotated[int, typer.Option(min=1, help="How often both are measured, in turns.")] = _PLAN.rounds,
    json: opt.JsonFile = None,
) -> None:
    """Measure the page server's processor time for each token that it streams, beside a page whose handler yields the
    whole history at every token, as most do. Both stand before the same worker and are asked as browsers ask."""
    check_writable(json)
    console = Console()
    head = Head(this_command(), this_machine(), now())
    plan = PagePlan(chats, images, image_mb, tokens, token_ms, rounds)
    report = asyncio.run(bench_page(plan, head, lambda what: typer.echo(what, err=True)))
    print_head(console, head)
    title = f"{chats} chats at once, {images} pictures of {image_mb:g} MB in the history of each"
    table = new_table(title, "", "round", "tokens", "CPU, ms per token", "took, s")
    for name, each in (("our page", report.ours), ("naive page", report.naive)):
        for number, figures in enumerate(each, 1):
            table.add_row(name, str(number), *_row(figures))
    console.print(table)
    for number, ratio in enumerate(report.ratios, 1):
        console.print(f"round {number}: the naive page takes {ratio:.1f} times as much for a token", markup=False)
    if json is not None:
        write_json(json, report)


def _row(figures: PageFigures) -> tuple[str, str, str]:
    return f"{figures.tokens:,}", f"{figures.cpu_ms_per_token:.2f}", f"{figures.wall_s:.1f}"
