"""`overload` and `soak`: how the servers bear what goes beyond their strength, and thousands of requests."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from serve.bench import options as opt
from serve.bench.machine import now, this_command, this_machine
from serve.bench.overload import OverloadPlan, bench_overload
from serve.bench.plan import parse_size
from serve.bench.report import Head, check_writable, write_json
from serve.bench.soak import SoakPlan, bench_soak
from serve.bench.tables_faults import print_overload, print_soak
from serve.server import run

WorkerFlag = Annotated[
    list[str] | None, typer.Option(help="One more word for the workers' command line; repeat it for more.")
]


def overload(
    factor: Annotated[float, typer.Option(min=1, help="Times the capacity that is measured before.")] = 4.0,
    seconds: Annotated[float, typer.Option(min=1, help="How long so much is asked.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often, with new servers each time.")] = 3,
    running: Annotated[int, typer.Option(min=1, help="Requests that a worker runs at once.")] = 8,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that wait there at most.")] = 8,
    workers: Annotated[int, typer.Option(min=1, help="Workers with the same model.")] = 1,
    words: Annotated[int, typer.Option(min=1, help="Words of an answer.")] = 20,
    word_ms: Annotated[float, typer.Option(min=0.1, help="Milliseconds between them.")] = 20.0,
    images: Annotated[int, typer.Option(min=0, help="Pictures in each request.")] = 0,
    image_size: opt.ImageSize = opt.DEFAULT_SIZE,
    direct: Annotated[bool, typer.Option("--direct", help="Ask a worker itself, around the controller.")] = False,
    model_path: opt.ModelPath = None,
    worker_flag: WorkerFlag = None,
    json: opt.JsonFile = None,
) -> None:
    """Ask several times as much as workers (echo, or a checkpoint) can answer: time of refusals, capacity in use."""
    check_writable(json)
    head = Head(this_command(), this_machine(), now())
    plan = OverloadPlan(
        factor=factor,
        seconds=seconds,
        rounds=rounds,
        running=running,
        waiting=waiting,
        words=words,
        word_ms=word_ms,
        images=images,
        image_size=parse_size(image_size),
        workers=workers,
        direct=direct,
        model_path=model_path,
        flags=tuple(worker_flag or ()),
    )
    with Console(stderr=True).status("measuring"):
        report = run(bench_overload(plan, head))
    if json is not None:
        write_json(json, report)
    print_overload(Console(), report)


def soak(
    requests: Annotated[int, typer.Option(min=100, help="How many, in all.")] = SoakPlan.requests,
    at_once: Annotated[int, typer.Option(min=1, help="Of them side by side.")] = SoakPlan.at_once,
    workers: Annotated[int, typer.Option(min=1, help="Workers with the same model.")] = SoakPlan.workers,
    aborted: Annotated[float, typer.Option(min=0, max=1, help="Share that is given up.")] = SoakPlan.aborted,
    bad: Annotated[float, typer.Option(min=0, max=1, help="Share with a broken picture.")] = SoakPlan.bad,
    model_path: opt.ModelPath = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Our engine with a random checkpoint, made for this, in place of echo.")
    ] = False,
    worker_flag: WorkerFlag = None,
    seed: opt.Seed = 0,
    json: opt.JsonFile = None,
) -> None:
    """Ask thousands of mixed requests of echo workers, or of a checkpoint: memory, descriptors, threads, free places.

    Exits with 1 where something grew that should not have.
    """
    check_writable(json)
    head = Head(this_command(), this_machine(), now())
    plan = SoakPlan(
        requests=requests,
        at_once=at_once,
        workers=workers,
        aborted=aborted,
        bad=bad,
        model_path=model_path,
        tiny=tiny,
        flags=tuple(worker_flag or ()),
        seed=seed,
    )
    with Console(stderr=True).status("asking") as status:
        report = run(bench_soak(plan, head, lambda done: status.update(f"asking: {done} of {requests}")))
    if json is not None:
        write_json(json, report)
    print_soak(Console(), report)
    if report.problems():
        raise typer.Exit(1)
