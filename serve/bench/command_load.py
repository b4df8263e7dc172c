"""`load` and `compare`: one server or two under a load of chats."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from serve.bench import options as opt
from serve.bench.children import READY_S
from serve.bench.compare import CompareReport, Round, Start, alternate, check_name, compare_figures, open_target
from serve.bench.load import run_load
from serve.bench.machine import now, this_command, this_machine
from serve.bench.options import DEFAULT, DEFAULT_SIZE
from serve.bench.plan import LoadPlan, parse_size
from serve.bench.progress import AnswerCount
from serve.bench.records import Answer, Summary, figures, summarise
from serve.bench.report import Head, LoadReport, Series, check_plot, check_writable, write_json, write_plot
from serve.bench.tables import print_compare, print_load, short_names
from serve.bench.target import HttpTarget


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
    if json is not None:
        write_json(json, report)
    if plot is not None:
        write_plot(plot, [Series(name, answers)], f"{name}: {report.head.command}")
    print_load(Console(), report)
    if report.summary.errors and not report.summary.completion_tokens:
        raise typer.Exit(1)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="URL#MODEL, or started here: ours, generate, generate:N.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    model_path: opt.ModelPath = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    users: opt.Users = 8,
    turns: opt.Turns = DEFAULT.turns,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured, in turns.")] = 3,
    think_time: opt.ThinkTime = DEFAULT.think_time_s,
    images: opt.Images = DEFAULT.images,
    image_size: opt.ImageSize = DEFAULT_SIZE,
    same_picture: opt.SamePicture = False,
    prompt_words: opt.PromptWords = DEFAULT.prompt_words,
    system: opt.System = "",
    max_tokens: opt.MaxTokens = DEFAULT.max_tokens,
    temperature: opt.Temperature = DEFAULT.temperature,
    warm_up: opt.WarmUp = 1,
    seed: opt.Seed = DEFAULT.seed,
    wait_ready: opt.WaitReady = READY_S,
    json: opt.JsonFile = None,
    plot: opt.PlotFile = None,
    api_key: opt.ApiKey = None,
) -> None:
    """Put the same load on two servers in turns and print their ratios; answers are all of --max-tokens.

    `ours` is a worker on --model-path; `generate` serves it the way the original LLaVA worker does, one request at a
    time (generate:N: up to N, each in a thread).
    """
    plan = LoadPlan(
        users=users,
        turns=turns,
        think_time_s=think_time,
        images=images,
        image_size=parse_size(image_size),
        same_picture=same_picture,
        prompt_words=prompt_words,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        ignore_eos=True,
        warm_up=warm_up,
        seed=seed,
    )
    start = Start(model_path, device, dtype, users, wait_ready, api_key)
    for name in (a, b):
        check_name(name, start)
    check_writable(json, plot)
    check_plot(plot)
    report, *answers = asyncio.run(_compare(plan, a, b, start, rounds))
    if json is not None:
        write_json(json, report)
    if plot is not None:
        names = short_names(a, b)
        series = [Series(name, heard, rounds) for name, heard in zip(names, answers, strict=True)]
        write_plot(plot, series, report.head.command)
    print_compare(Console(), report)


async def _compare(
    plan: LoadPlan, a: str, b: str, start: Start, rounds: int
) -> tuple[CompareReport, list[Answer], list[Answer]]:
    head = Head(this_command(), this_machine(), now())
    heard: tuple[list[Answer], list[Answer]] = ([], [])
    async with open_target(a, start) as first, open_target(b, start) as second:

        async def run(target: HttpTarget, name: str, number: int, kept: list[Answer]) -> Summary:
            load = plan.after(number) if number == 0 else replace(plan.after(number), warm_up=0)
            with AnswerCount(f"round {number + 1} of {rounds}: {name}") as told:
                answers = await run_load(load, target, told=told)
            kept.extend(answers)
            return summarise(answers)

        results = await alternate(
            rounds,
            lambda number: run(first, a, number, heard[0]),
            lambda number: run(second, b, number, heard[1]),
        )
    lines = compare_figures([(figures(each), figures(other)) for each, other in results])
    done = tuple(Round(*pair, "a" if number % 2 == 0 else "b") for number, pair in enumerate(results))
    return CompareReport(head, a, b, plan, done, lines), *heard
