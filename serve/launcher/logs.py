"""The log files of launched processes: opened for appending, rotated, and read for what a process said last."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NAMES_AN_ERROR = re.compile(r"^(error|\[?error\]?)\b|\b\w*(Error|Exception): ", re.IGNORECASE)
_TAIL_BYTES = 8192


def open_log(log: Path, argv: Sequence[str]) -> BinaryIO:
    """The log, opened for appending, with a line that says when and what was started."""
    log.parent.mkdir(parents=True, exist_ok=True)
    opened = log.open("ab")
    opened.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(argv)}\n".encode())
    opened.flush()
    return opened


def rotate(log: Path, *, most_bytes: int = 5 * 1024 * 1024, keep: int = 3) -> None:
    """Move a log that has grown long aside: `x.log` to `x.log.1`, that to `x.log.2`, the oldest away."""
    if not log.exists() or log.stat().st_size < most_bytes:
        return
    for number in range(keep, 0, -1):
        newer = log if number == 1 else log.with_name(f"{log.name}.{number - 1}")
        if newer.exists():
            newer.replace(log.with_name(f"{log.name}.{number}"))


def read_tail(log: Path, start: int) -> str:
    """The end of what was written from `start` on, without terminal colours; empty where there is nothing."""
    with contextlib.suppress(OSError), log.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(start, size - _TAIL_BYTES))
        return _ESCAPES.sub("", opened.read().decode("utf-8", "replace")).replace("\r", "\n")
    return ""


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def last_words(text: str) -> str:
    """The sentence that says why a process ended: the last line that names an error, else the last line there is."""
    for line in reversed(text.splitlines()):
        if _NAMES_AN_ERROR.search(line.strip()):
            return line.strip()
    return last_line(text)
