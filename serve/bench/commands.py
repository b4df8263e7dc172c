"""The commands of `python -m serve.bench`; what they do stands in the modules beside this one."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from serve.bench import options as opt
from serve.bench.load import run_load
from serve.bench.machine import now, this_command, this_machine
from serve.bench.options import DEFAULT, DEFAULT_SIZE
from serve.bench.plan import LoadPlan, parse_size
from serve.bench.progress import AnswerCount
from serve.bench.records import Answer, summarise
from serve.bench.report import Head, LoadReport, Series, check_plot, check_writable, write_json, write_plot
from serve.bench.tables import print_load
from serve.bench.target import HttpTarget

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Measure servers and engines.",
)


@app.callback()
def main() -> None:
    """Every table says above it what was measured on what; figures are medians."""


@app.command()
def load(
    url: Annotated[str, typer.Argument(metavar="URL", help="Any OpenAI-compatible server, a controller's included.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model to ask. [default: the first listed]")] = "",
    users: opt.Users = DEFAULT.users,
    turns: opt.Turns = DEFAULT.turns,
    rounds: opt.Rounds = DEFAULT.rounds,
    duration: Annotated[
        float | None, typer.Option(metavar="S", help="Begin chats for this many seconds instead of --rounds.")
    ] = None,
    request_rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="Chats begin at random, N requests a second on average, however many run."),
    ] = None,
    think_time: opt.ThinkTime = DEFAULT.think_time_s,
    images: opt.Images = DEFAULT.images,
    image_size: opt.ImageSize = DEFAULT_SIZE,
    same_picture: opt.SamePicture = False,
    prompt_words: opt.PromptWords = DEFAULT.prompt_words,
    system: opt.System = "",
    max_tokens: opt.MaxTokens = DEFAULT.max_tokens,
    temperature: opt.Temperature = DEFAULT.temperature,
    ignore_eos: opt.IgnoreEos = False,
    warm_up: opt.WarmUp = DEFAULT.warm_up,
    seed: opt.Seed = DEFAULT.seed,
    json: opt.JsonFile = None,
    plot: opt.PlotFile = None,
    api_key: opt.ApiKey = None,
) -> None:
    """Chat with a server as many people at once, and time its answers."""
    plan = LoadPlan(
        users=users,
        turns=turns,
        rounds=rounds,
        duration_s=duration,
        request_rate=request_rate,
        think_time_s=think_time,
        images=images,
        image_size=parse_size(image_size),
        same_picture=same_picture,
        prompt_words=prompt_words,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        ignore_eos=ignore_eos,
        warm_up=warm_up,
        seed=seed,
    )
    check_writable(json, plot)
    check_plot(plot)
    head = Head(this_command(), this_machine(), now())

    async def run() -> tuple[str, list[Answer]]:
        async with HttpTarget(url, model, api_key=api_key) as target:
            await target.open()
            with AnswerCount(f"{target.model} at {target.url}") as told:
                return target.model, await run_load(plan, target, told=told)

    name, answers = asyncio.run(run())
    report = LoadReport(head, url, name, plan, summarise(answers), tuple(answers))
    print_load(Console(), report)
    if json is not None:
        write_json(json, report)
    if plot is not None:
        write_plot(plot, [Series(name, answers)], f"{name}: {report.head.command}")
    if report.summary.errors and not report.summary.completion_tokens:
        raise typer.Exit(1)
