"""Measure how often a model is right about pictures that no training has seen.

python -m llava_core.eval builtin
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from llava_core.errors import BadRequest
from llava_core.run_command import run_command

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Measure how often a model is right about pictures that no training has seen.",
)


@app.callback()
def _commands() -> None:
    pass


@app.command()
def builtin(
    model: Annotated[
        list[str] | None,
        typer.Option(help="builtin, builtin-stage1, or a folder in llava-hf format; repeat it. Both by default."),
    ] = None,
    per_skill: Annotated[int, typer.Option(help="Questions per skill.")] = 60,
    blind: Annotated[bool, typer.Option("--blind/--no-blind", help="Ask all again about a blank picture.")] = True,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Also the 200 questions without a picture.")] = True,
    out: Annotated[Path | None, typer.Option(help="Write all figures and the first wrong answers as JSON.")] = None,
    card: Annotated[Path | None, typer.Option(help="Write the model card here.")] = None,
) -> None:
    """The built-in model's skills, beside the same questions about a blank picture."""
    from llava_core.builtin.assemble import VARIANTS, assembled
    from llava_core.builtin.card import card_text, measure, table
    from llava_core.eval.footprint import footprint

    for name in model or ():
        if name not in VARIANTS and not (Path(name) / "config.json").is_file():
            raise BadRequest(
                f"{name!r} is neither a folder with a checkpoint nor one of {', '.join(VARIANTS)}", param="--model"
            )
    folders = {
        (name if name in VARIANTS else Path(name).name): assembled(name, _say) if name in VARIANTS else Path(name)
        for name in model or VARIANTS
    }
    reports = measure(folders, per_skill, _say, blind=blind, text=text)
    if out:
        out.write_text(json.dumps([report.as_json() for report in reports], indent=1) + "\n", "utf-8")
    if card:
        _say("what each takes on disk and in memory")
        sizes = {name: footprint(folder) for name, folder in folders.items()}
        card.write_text(card_text(reports, sizes=sizes, shipped=set(folders) == set(VARIANTS)), "utf-8")
    print(table(reports))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(app)
