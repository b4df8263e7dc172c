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
_LOGGED = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|INFO|WARNING|ERROR|DEBUG)\b")
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ [\w.]+: ")
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Exit)\b")
_PROGRESS = re.compile(r"\d+%\|")
_TAIL_BYTES = 8192
_MOST_LINES = 20


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
        lines = _ESCAPES.sub("", opened.read().decode("utf-8", "replace")).split("\n")
        # As a terminal would show it: what follows a carriage return stands over what was there.
        return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return ""


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def without_stamp(line: str) -> str:
    """A line of a log without its time, level and origin."""
    return _STAMP.sub("", line)


def last_words(text: str) -> str:
    """Why a process ended: what it said outside its log at the end, of a traceback only the last line."""
    lines = text.strip().splitlines()
    said: list[str] = []
    while lines and not _LOGGED.match(lines[-1]):
        line = lines.pop().rstrip()
        if not _PROGRESS.search(line):
            said.insert(0, line)
    if any(line.startswith("Traceback ") for line in said):
        said = [next((line for line in reversed(said) if _ERROR.match(line)), said[-1])]
    return "\n".join(said[-_MOST_LINES:]).strip() or last_line(text)
