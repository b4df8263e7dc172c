"""One command for the whole topology: a controller, a worker per model and the page, kept running until Ctrl-C.

python -m serve.launch [--model PATH_OR_ID[@GPUS][:4bit|:8bit]]... [--config FILE.toml]
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llava_core.errors import LlavaError
from serve.launcher.config import LaunchConfig, load_config
from serve.launcher.default import embedded_default
from serve.launcher.gpus import physical_cores, visible_gpus
from serve.launcher.plan import ROOT, Machine, make_plan
from serve.launcher.ports import is_free_on
from serve.launcher.run import run_plan

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
_MODEL = "PATH_OR_ID[@GPUS][:4bit|:8bit]"


@app.command()
def main(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar=_MODEL,
            help="A model to serve, by folder or hub id; repeat it for more. @0,1 names its GPUs, @cpu none of them.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with these options as keys and a [[model]] table per model.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Where the page listens: 127.0.0.1 when not given, 0.0.0.0 for the whole network."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="The page's port; 7860 or the next free one when not given.")] = None,
    controller_host: Annotated[
        str | None, typer.Option(help="Where the controller and the API listen; 127.0.0.1 when not given.")
    ] = None,
    controller_port: Annotated[
        int | None, typer.Option(help="The controller's and the API's port; 21001 or the next free one when not given.")
    ] = None,
    worker_port: Annotated[
        int | None,
        typer.Option(help="The first worker's port, the others count up; 21002 or free ones when not given."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="transformers, or echo, which needs no checkpoint.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    conv_template: Annotated[str | None, typer.Option(help="Prompt template for original-format checkpoints.")] = None,
    allow_image_host: Annotated[
        list[str] | None, typer.Option(help="Let workers fetch http(s) images from this host; repeat it for more.")
    ] = None,
    embed: Annotated[bool | None, typer.Option("--embed", help="Show the page without its header and footer.")] = None,
    share: Annotated[bool | None, typer.Option("--share", help="Ask Gradio for a public link to the page.")] = None,
    record: Annotated[
        bool | None, typer.Option("--record", help="Keep likes, dislikes and flags in the logs folder, and say so.")
    ] = None,
    model_list_mode: Annotated[
        str | None, typer.Option(help="once keeps the page's list of models as found, reload follows the controller.")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="Folder of the log files; logs/ beside launch.sh when not given.")
    ] = None,
) -> None:
    """Start LLaVA Serve: a controller, one worker per --model and the page. Ctrl-C ends them all.

    Without --model a tiny model with random weights is built and served, which shows that everything is wired up.
    """
    given = {
        "host": host,
        "port": port,
        "controller_host": controller_host,
        "controller_port": controller_port,
        "worker_port": worker_port,
        "engine": engine,
        "dtype": dtype,
        "conv_template": conv_template,
        "allow_image_host": tuple(allow_image_host) if allow_image_host else None,
        "embed": embed,
        "share": share,
        "record": record,
        "model_list_mode": model_list_mode,
        "logs": None if logs is None else str(logs.absolute()),
    }
    try:
        code = _launch(load_config(config, given, model or []))
    except LlavaError as error:
        Console(stderr=True).print(f"error: {error.message}", markup=False, highlight=False, soft_wrap=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def _launch(config: LaunchConfig) -> int:
    console = Console(highlight=False)
    if not config.models:
        config = replace(config, models=(embedded_default(console),))
    machine = Machine(
        gpus=visible_gpus(os.environ),
        cores=physical_cores(),
        environment=os.environ,
        is_free=lambda host, port: is_free_on(host)(port),
    )
    logs = Path(config.logs) if config.logs else ROOT / "logs"
    return asyncio.run(run_plan(make_plan(config, machine, logs=logs), console, logs))


if __name__ == "__main__":
    app()
