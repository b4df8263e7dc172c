"""Say what a checkpoint is, or convert it to llava-hf format.

python -m llava_core.checkpoints PATH [--model-base BASE] [--conv-template NAME] [--convert OUT]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava_core.checkpoints.memory import in_words
from llava_core.errors import LlavaError

if TYPE_CHECKING:
    from llava_core.checkpoints.describe import Description

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    path: Annotated[str, typer.Argument(help="The checkpoint's folder, or a Hugging Face id.")],
    base: Annotated[
        str | None,
        typer.Option("--model-base", "--base", help="Language model of a projector-only or LoRA checkpoint."),
    ] = None,
    conv_template: Annotated[
        str | None, typer.Option(help="Prompt format, where the checkpoint does not say or says wrong.")
    ] = None,
    convert: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write the checkpoint in llava-hf format into this new folder.")
    ] = None,
) -> None:
    """Say what a checkpoint is and what memory it needs; with --convert also write it in llava-hf format."""
    console = Console()
    try:
        _quieten()
        from llava_core.checkpoints.describe import describe

        print_description(console, describe(path, base=base, conv_template=conv_template))
        if convert is not None:
            _convert(console, path, base, conv_template, convert)
    except LlavaError as error:
        Console(stderr=True).print(f"[bold red]{error.code}:[/] {escape(error.message)}", soft_wrap=True)
        raise typer.Exit(1) from error


def print_description(console: Console, what: Description) -> None:
    facts = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    files = sum(size for _, size in what.files)
    for name, value in (
        ("checkpoint", what.folder),
        ("is", f"{what.kind} ({what.model_type})"),
        ("language model", what.base),
        ("files", f"{len(what.files)} with weights, {in_words(files)}"),
        ("vision tower", what.vision),
        ("prompt", f"{what.template}: {what.template_reason}"),
        ("context", f"{what.context_length:,} tokens"),
        ("a picture takes", _image_tokens(what)),
        ("note", what.note),
    ):
        if value:
            facts.add_row(name, escape(value))
    console.print(facts, "")
    parts = Table("part", "weights", "16 bit", "8 bit", "4 bit", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in parts.columns[1:]:
        column.justify = "right"
    from llava_core.checkpoints.describe import BITS
    from llava_core.checkpoints.memory import weight_bytes

    for name in dict.fromkeys(part.name for part in what.parts):
        chosen = tuple(part for part in what.parts if part.name == name)
        count = sum(part.weights for part in chosen)
        parts.add_row(name, _count(count), *(in_words(weight_bytes(chosen, bits)) for bits in BITS))
    parts.add_row("one chat of full length", "", *(in_words(what.kv_bytes) for _ in BITS))
    totals = (in_words(what.weight_bytes(bits) + what.kv_bytes) for bits in BITS)
    parts.add_row("memory needed", _count(what.weights), *totals, style="bold")
    console.print(parts)


def _image_tokens(what: Description) -> str:
    sizes = (f"{tokens:,} tokens at {width}x{height}" for (width, height), tokens in what.image_tokens.items())
    return ", ".join(sizes)


def _count(weights: int) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if weights >= scale:
            return f"{weights / scale:.2f} {unit}"
    return str(weights)


def _convert(console: Console, path: str, base: str | None, conv_template: str | None, out: Path) -> None:
    from llava_core.checkpoints.convert import convert
    from llava_core.checkpoints.recognise import recognise

    done = convert(recognise(path, base=base), out, conv_template=conv_template)
    console.print(f"\nwritten in llava-hf format: {escape(str(done.folder))}", soft_wrap=True)
    for difference in done.differences:
        console.print(f"in plain transformers {escape(difference)}", soft_wrap=True)


def _quieten() -> None:
    """Progress bars and advice of the libraries would stand between the lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    app()
