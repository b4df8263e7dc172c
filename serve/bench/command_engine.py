"""`engine`, `overhead`, `baseline` and `checkpoint`: what is measured, served or built on this machine."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from llava_core.config import EngineLimits
from llava_core.engines.load import EngineOptions
from serve.bench import options as opt
from serve.bench.engine import EnginePlan, bench_engine
from serve.bench.generate import load_generate_engine
from serve.bench.geometry import Precision, build_geometry
from serve.bench.machine import now, this_command, this_machine
from serve.bench.options import DEFAULT_SIZE
from serve.bench.overhead import OverheadPlan, bench_overhead
from serve.bench.plan import parse_size
from serve.bench.report import Head, check_writable, write_json
from serve.bench.tables import print_engine, print_overhead
from serve.model_worker import serve_worker
from serve.server import start_logging

BASELINE_LIMITS = EngineLimits(max_waiting=1024, max_wait_s=3600.0)
"""A slow answer is to be measured, not refused."""


def engine(
    model_path: opt.ModelPath = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured, in turns.")] = 3,
    users: opt.Users = 8,
    turns: opt.Turns = 3,
    long_turns: Annotated[int, typer.Option(min=1, help="Turns of the chat that is measured alone.")] = 10,
    max_tokens: opt.MaxTokens = 32,
    prefill_words: Annotated[int, typer.Option(min=1, help="Words of the long prompt.")] = 600,
    images: opt.Images = 1,
    image_size: opt.ImageSize = DEFAULT_SIZE,
    generate: Annotated[bool, typer.Option(help="Measure `generate` too.")] = True,
    generate_dtype: Annotated[
        Precision | None, typer.Option(help="Precision of `generate`. [default: the engine's]")
    ] = None,
    seed: opt.Seed = 0,
    json: opt.JsonFile = None,
) -> None:
    """Measure the engine alone, in this process, against `generate` on the same weights (in a process of its own)
    and the machine's limit.

    Without --model-path it builds the checkpoint that the command `checkpoint` writes.
    """
    check_writable(json)
    plan = EnginePlan(
        rounds=rounds,
        users=users,
        turns=turns,
        long_turns=long_turns,
        max_tokens=max_tokens,
        prefill_words=prefill_words,
        images=images,
        image_size=parse_size(image_size),
        with_generate=generate,
        seed=seed,
    )
    plan.crowd(0)  # refuses what makes no sense before anything is loaded
    console = Console(stderr=True)
    with ExitStack() as stack:
        if model_path is None:
            model_path = str(Path(stack.enter_context(TemporaryDirectory(prefix="bench-"))) / "llava-157m")
            build_geometry(Path(model_path))
        status = stack.enter_context(console.status("starting"))
        command, date, load_before = this_command(), now(), this_machine().load_before

        def head(threads: int, device: str) -> Head:
            machine = this_machine(torch_threads=threads if not device else None, device=device)
            return Head(command, replace(machine, load_before=load_before), date)

        options = EngineOptions(model_path=model_path, device=device, dtype=dtype)
        report = asyncio.run(bench_engine(options, plan, head, told=status.update, generate_dtype=generate_dtype))
    if json is not None:
        write_json(json, report)
    print_engine(Console(), report)


def overhead(
    rounds: Annotated[int, typer.Option(min=1, help="How often each way is measured, in turns.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Answers of the one user.")] = 50,
    streams: Annotated[int, typer.Option(min=1, help="Streams side by side.")] = 32,
    max_tokens: opt.MaxTokens = 32,
    token_ms: Annotated[float, typer.Option(min=0.1, help="Milliseconds between the words of a stream.")] = 20.0,
    seed: opt.Seed = 0,
    json: opt.JsonFile = None,
) -> None:
    """Measure what HTTP, events and the controller add to an engine that costs next to nothing."""
    check_writable(json)
    head = Head(this_command(), this_machine(), now())
    plan = OverheadPlan(rounds, requests, streams, max_tokens, token_ms, seed)
    with Console(stderr=True).status("measuring"):
        report = asyncio.run(bench_overhead(plan, head))
    if json is not None:
        write_json(json, report)
    print_overhead(Console(), report)


def baseline(
    model_path: Annotated[str, typer.Option(metavar="PATH", help="The checkpoint to serve.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 21003,
    model_name: Annotated[str | None, typer.Option(help="Name to serve it under. [default: its folder's]")] = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    at_once: Annotated[int, typer.Option(min=1, help="Requests that run at once, each in a thread.")] = 1,
) -> None:
    """Serve a checkpoint the way the original LLaVA worker does, to be compared with."""
    start_logging()
    options = EngineOptions(
        model_path=model_path, model_name=model_name, device=device, dtype=dtype, limits=BASELINE_LIMITS
    )
    code = asyncio.run(
        serve_worker(
            lambda: load_generate_engine(options, at_once=at_once),
            host=host,
            port=port,
            worker_address=None,
            controller=None,
        )
    )
    raise typer.Exit(code)


def checkpoint(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    dtype: Annotated[Precision, typer.Option(help="Precision to save in.")] = "float32",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
) -> None:
    """Write a random checkpoint of 157 million weights in the shape of LLaVA-1.5."""
    weights = build_geometry(out, dtype=dtype, seed=seed)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {weights / 1e6:.0f} million random weights in {dtype}, {size / 1e6:.0f} MB; its answers are noise")
