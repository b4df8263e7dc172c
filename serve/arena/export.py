"""For whoever runs the server: all votes with the conversations that were recorded, as LMArena's JSON lines.

python -m serve.arena.export --database-url sqlite:///data/chats.db > battles.jsonl
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llava_core.errors import LlavaError
from serve.arena.board import to_jsonl
from serve.store.battles import read_battles, read_conversations
from serve.store.database import Database

_ROOT = Path(__file__).resolve().parents[2]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    database_url: Annotated[
        str,
        typer.Option(
            envvar="LLAVA_SERVE_DATABASE_URL",
            help="Where votes are kept.",
            show_default="data/chats.db beside launch.sh",
            show_envvar=True,
        ),
    ] = f"sqlite:///{_ROOT / 'data' / 'chats.db'}",
) -> None:
    """Write all votes to the terminal or a pipe, with what was said where the page ran with --record."""
    try:
        database = Database(database_url)
        database.open()
        try:
            with database.reading() as connection:
                battles, said = read_battles(connection), read_conversations(connection)
        finally:
            database.close()
    except LlavaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.stdout.write(to_jsonl(battles, said))


if __name__ == "__main__":
    app()
