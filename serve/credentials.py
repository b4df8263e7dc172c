"""The token that our own processes know each other by: made at the first start, kept in a file of its owner alone.

Everything that registers a worker, asks where one is or talks to one directly shows it. Processes of one person on one
machine find it by themselves; others are given it in the environment, as LLAVA_SERVE_TOKEN.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from llava_core.errors import BadRequest

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "LLAVA_SERVE_TOKEN"
FOLDER = "LLAVA_SERVE_DATA"
_LEAST_CHARS = 16


def data_folder() -> Path:
    """$LLAVA_SERVE_DATA, else `data` beside launch.sh."""
    named = os.environ.get(FOLDER)
    return Path(named).expanduser() if named else ROOT / "data"


def token_file() -> Path:
    return data_folder() / "control-token"


def make_token() -> str:
    """The token, made where there is none yet. Raises BadRequest where it cannot be kept, or others could read it."""
    given = os.environ.get(TOKEN)
    if given is not None:
        return _checked(given, f"${TOKEN}")
    path = token_file()
    try:
        if not path.exists():
            _make(path)
        return _read(path)
    except OSError as error:
        raise BadRequest(
            f"the token of the control plane cannot be kept at {path} ({error.strerror}); "
            f"set ${FOLDER} to a folder that can be written, or ${TOKEN} to the token itself"
        ) from None


def known_token(url: str) -> str | None:
    """What to show the server at `url`: the token of the environment, or this machine's own to this machine. It is made
    even before that server has started."""
    if TOKEN not in os.environ and not is_loopback(urlsplit(url).hostname or ""):
        return None
    try:
        return make_token()
    except BadRequest:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


PUBLIC_LINK = "the public link"
"""The host of whatever has one, which leads to it from everywhere."""


def check_exposure(host: str, *, guarded: bool, insecure: bool, remedy: str) -> None:
    """Raise BadRequest for a server that a network could reach and that asks nobody who they are."""
    if not (guarded or insecure or is_loopback(host)):
        raise BadRequest(
            f"whoever reaches {host or '0.0.0.0'} could use this server, since nothing asks them who they are; "
            f"{remedy}, or say --insecure if the network can be trusted"
        )


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole under a name of its own first (mode 600), then linked: whoever starts at the same moment, as another process
    # or thread, finds a whole token or none, and everybody the same one.
    handle, fresh = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    try:
        with open(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        os.unlink(fresh)


def _read(path: Path) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise BadRequest(f"others can read the token in {path}; delete it, and a new one is made")
    return _checked(path.read_text().strip(), str(path))


def _checked(token: str, where: str) -> str:
    if len(token) < _LEAST_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise BadRequest(f"the token in {where} is no token: it needs {_LEAST_CHARS} plain characters or more")
    return token
