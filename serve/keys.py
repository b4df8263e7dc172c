"""Who may use the API: makes, lists and revokes keys. From the first one on, everybody needs one.
python -m serve.keys add NAME
"""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from llava_core.errors import LlavaError
from serve.key_ring import Key, KeyRing, keys_file
from serve.quota import Quota

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__
)
File = Annotated[
    Path | None, typer.Option("--keys", help="The file with the keys.", show_default="data/keys.json beside launch.sh")
]

Rate = Annotated[
    str | None, typer.Option(help="Requests in a time: 60/minute, or 10/second;1000/day. [default: as all keys]")
]
AtOnce = Annotated[int | None, typer.Option(help="Requests answered at once. [default: as all keys]")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who it is for; logs and metrics show this name.")],
    days: Annotated[float | None, typer.Option(min=0.01, help="Days until it expires. [default: never]")] = None,
    rate: Rate = None,
    at_once: AtOnce = None,
    keys: File = None,
) -> None:
    """Make a key and show it, once."""
    with _Told():
        ring = KeyRing(keys or keys_file())
        first = not ring.listed()
        secret = ring.add(name, days=days, quota=Quota(rate, at_once))
        print(secret)
        if first:
            print("This is the first key: from now on, the API asks everybody for one.", file=sys.stderr)


@app.command("list")
def list_keys(keys: File = None) -> None:
    """Show all keys, by name and how they begin."""
    with _Told():
        listed = KeyRing(keys or keys_file()).listed()
        if not listed:
            print("There are no keys yet; python -m serve.keys add NAME makes one.", file=sys.stderr)
        for key in listed:
            print(f"{key.name}\t{key.hint}…\tmade {_day(key.created)}\t{_state(key)}{_limits(key)}")


@app.command()
def limit(
    name: Annotated[str, typer.Argument(help="The key's name.")],
    rate: Rate = None,
    at_once: AtOnce = None,
    keys: File = None,
) -> None:
    """Say what a key may ask for, within a second and without a restart; without options, what all keys may."""
    with _Told():
        KeyRing(keys or keys_file()).limit(name, Quota(rate, at_once))


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="The key's name.")], keys: File = None) -> None:
    """Let a key open nothing any more, within a second."""
    with _Told():
        KeyRing(keys or keys_file()).revoke(name)


class _Told:
    """An error is a sentence and an exit code."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, LlavaError):
            print(f"error: {error.message}", file=sys.stderr)
            raise typer.Exit(2) from None


def _state(key: Key) -> str:
    if key.revoked is not None:
        return f"revoked {_day(key.revoked)}"
    if key.expires is None:
        return "valid"
    return f"{'valid until' if key.is_valid(time.time()) else 'expired'} {_day(key.expires)}"


def _limits(key: Key) -> str:
    at_once = None if key.at_once is None else f"{key.at_once} at once"
    return "".join(f"\t{limit}" for limit in (key.rate, at_once) if limit is not None)


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


if __name__ == "__main__":
    app()
