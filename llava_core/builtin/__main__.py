"""The built-in model: put it together, draw its data, train it anew.

python -m llava_core.builtin rebuild --size small --out OUT
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from llava_core.builtin.rebuild_sizes import SIZES, cost_of
from llava_core.run_command import run_command

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="The built-in model: put it together from its parts, draw its training data, train it anew.",
)


@app.command()
def assemble(
    variant: Annotated[
        str, typer.Option(help="builtin, builtin-stage1, or smollm2: the language model alone.")
    ] = "builtin",
) -> None:
    """Put a checkpoint together in the cache, if it is not there yet, and print where it lies."""
    from llava_core.builtin.assemble import BLIND, assembled, language_model
    from llava_core.builtin.old_models import clear_old

    folder = language_model(_say) if variant == BLIND else assembled(variant, _say)
    clear_old(folder, _say, time.time())
    print(folder)


@app.command()
def data(
    out: Annotated[Path, typer.Option(help="Folder for captions.json, chats.json and their pictures.")],
    pictures: Annotated[int, typer.Option(help="Pictures, with two chats each for the second stage.")] = 1000,
    captions: Annotated[int, typer.Option(help="How many of them get captions, for the first stage.")] = 500,
    texts: Annotated[bool, typer.Option(help="Mix in requests without a picture.")] = True,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures.")] = 1,
) -> None:
    """Draw pictures and write what can be said about them, in LLaVA's JSON."""
    from llava_core.builtin.rebuild import sources, write_data

    for path in write_data(out, sources(_say), pictures=pictures, captions=captions, texts=texts, seed=seed, say=_say):
        print(path)


@app.command()
def rebuild(
    out: Annotated[Path, typer.Option(help="Folder for data, both stages and the card.")],
    size: Annotated[str, typer.Option(help=f"How much of everything. {'. '.join(map(cost_of, SIZES))}.")] = "small",
    seed: Annotated[int, typer.Option(help="Seed of pictures and weights.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what lies in the folder.")] = False,
) -> None:
    """Train the model anew: tower, data, both stages, card."""
    from llava_core.builtin.rebuild import rebuild as again

    print(again(size, out, _say, seed=seed, resume=resume))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(app)
