"""Where a model named on a command line is: a folder, made absolute, or a hub id; known before anything slow starts."""

from __future__ import annotations

from pathlib import Path

from llava_core.errors import BadRequest


def find_model(name: str, folder: Path, option: str) -> str:
    """The folder `name` as read from `folder`, else `name` as a hub id (OWNER/NAME).

    BadRequest where a folder was clearly meant and is not there.
    """
    full = folder / Path(name).expanduser()
    if full.exists():
        return str(full.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise BadRequest(
            f"{option} {name}: there is no folder {full}, and this is no hub id (OWNER/NAME) either", param=option
        )
    return name
