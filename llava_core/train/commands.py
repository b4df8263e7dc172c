"""The commands of `python -m llava_core.train`. Nothing here imports torch before a command runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from llava_core.errors import BadRequest
from llava_core.train.recipes import Stage
from llava_core.train.settings import flag, options, settle

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Build a LLaVA from parts, and train it in two stages: pretrain, then finetune.",
)


@app.command()
def build(
    tower: Annotated[str, typer.Option(help="Vision tower: CLIP, SigLIP, DINOv2, or another with a row per patch.")],
    llm: Annotated[str, typer.Option(help="Causal language model.")],
    out: Annotated[Path, typer.Option(help="New folder for the checkpoint.")],
    projector: Annotated[str, typer.Option(help="linear, mlp2x_gelu, or deeper: mlp3x_gelu …")] = "mlp2x_gelu",
    pictures: Annotated[
        str,
        typer.Option(help="own: as the tower's processor; pad: to a square; anyres: tiles; auto: pad, not crop."),
    ] = "auto",
    layer: Annotated[
        int | None, typer.Option(help="Layer of the tower to take; the last but one of transformers.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="default drops a class token, full keeps all rows.")] = None,
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16; auto keeps the language model's.")
    ] = "auto",
    conv_template: Annotated[
        str | None, typer.Option(help="Prompt format, where the language model brings none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the projector's first weights.")] = 0,
) -> None:
    """Put a vision tower and a language model together, in llava-hf format."""
    if strategy not in (None, "default", "full"):
        raise BadRequest(f"--strategy must be default or full, not {strategy!r}", param="--strategy")
    from llava_core.train.build import build as put_together
    from llava_core.train.quiet import quieten

    quieten()
    done = put_together(
        tower,
        llm,
        out,
        projector=projector,
        pictures=pictures,  # pyright: ignore[reportArgumentType]
        layer=layer,
        strategy=strategy,  # pyright: ignore[reportArgumentType]
        dtype=dtype,
        conv_template=conv_template,
        seed=seed,
    )
    console = Console(highlight=False)
    for name, value in done.facts:
        console.print(f"{name + ':':<16} {value}", markup=False, soft_wrap=True)
    console.print(f"{'written to:':<16} {done.folder}", markup=False, soft_wrap=True)


def _stage_command(stage: Stage, words: str) -> Callable[..., None]:
    """A command whose flags are the table of settings."""

    def command(**given: Any) -> None:
        config, resume, dry_run = (given.pop(name) for name in ("config", "resume", "dry_run"))
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        settings = settle(stage, config, {name: value for name, value in given.items() if value not in (None, ())})
        console = Console(highlight=False)
        from llava_core.train.quiet import quieten

        quieten()
        if dry_run:
            from llava_core.train.dry_run import dry_run as rehearse

            rehearse(settings, console)
            return
        from llava_core.train.run import train

        train(settings, console, resume=resume)

    kinds: dict[str, Any] = {
        "config": Annotated[Path | None, typer.Option(metavar="FILE.toml", help="Settings in a file; flags win.")],
        "resume": Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its last state.")],
        "dry_run": Annotated[
            bool, typer.Option("--dry-run", help="Say what would learn, memory, steps and time; train nothing.")
        ],
    }
    defaults: dict[str, Any] = {"config": None, "resume": False, "dry_run": False}
    for name, (kind, meaning, _) in options().items():
        held = list[str] if kind == tuple[str, ...] else kind
        names = (f"--{flag(name)}/--no-{flag(name)}",) if kind is bool else (f"--{flag(name)}",)
        kinds[name] = Annotated[held | None, typer.Option(*names, help=meaning)]
        defaults[name] = None
    command.__name__ = stage
    command.__doc__ = words
    command.__annotations__ = {**kinds, "return": None}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
        for name, kind in kinds.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return command


app.command("pretrain")(
    _stage_command("pretrain", "Stage 1: align the projector on captioned pictures; tower and language model frozen.")
)
app.command("finetune")(
    _stage_command("finetune", "Stage 2: tune projector and language model (or adapters, --lora) to instructions.")
)


@app.command()
def check(
    data: Annotated[list[str], typer.Argument(help="Samples, in any form that --data takes.")],
    model: Annotated[str | None, typer.Option(help="Check them for this checkpoint: ids, answers, length.")] = None,
    images: Annotated[str, typer.Option(help="Folder that picture names are relative to.")] = "",
    max_length: Annotated[int, typer.Option(help="Most tokens of a sample.")] = 2048,
    template: Annotated[str, typer.Option(help="plain (stage 1) or chat.")] = "chat",
    workers: Annotated[int, typer.Option(help="Processes that check.")] = 0,
) -> None:
    """Check samples: every wrong one with its line and the reason. Ends with 1 when there are any."""
    if model is not None:
        from llava_core.train.quiet import quieten

        quieten()
    from llava_core.train.report import check_and_print

    console = Console(highlight=False)
    if not check_and_print(
        data, model, console, images=images, max_length=max_length, plain=template == "plain", workers=workers
    ):
        raise typer.Exit(1)


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="The --out of a run, finished or not.")],
    out: Annotated[Path, typer.Option(help="New folder for the checkpoint.")],
    step: Annotated[int | None, typer.Option(help="Of this saved state; the last one by default.")] = None,
    base: Annotated[str | None, typer.Option(help="Where the checkpoint that the run began with lies now.")] = None,
) -> None:
    """Make a checkpoint of a run's saved state: adapters merged, in llava-hf format."""
    from llava_core.train.merge import merge as put_together

    done = put_together(run, out, step=step, base=base)
    Console(highlight=False).print(
        f"step {done.step} on {done.base.name}: written to {done.folder}", markup=False, soft_wrap=True
    )


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="The --out of a run.")],
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and leave.")] = False,
) -> None:
    """Show a run's loss, rates and sample answers in the terminal while it trains."""
    from llava_core.train.watch import watch as look

    look(run, Console(highlight=False), once=once)
