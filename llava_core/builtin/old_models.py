"""Clears the cache of assembled models that newer ones have taken the place of."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from llava_core.builtin.parts import Say

NEWEST = 2
"""Of each kind these stay, however old: another checkout may serve the one before."""
UNUSED_S = 60 * 24 * 3600.0
"""What a start used since then stays, too: it may be served still, and a worker that is started again loads it anew."""
_OURS = re.compile(r"(builtin(?:-stage1)?|base|smollm2-135m-instruct)-[0-9a-f]{8,12}(?:-[0-9a-f]{8})?")
_UNFINISHED = re.compile(rf"\.{_OURS.pattern}(?:\.\d+)+(?:\.tower)?")


def clear_old(used: Path, say: Say, now: float) -> None:
    """`used` is the folder that is served now; those beside it are looked at. Nothing but our own names is touched,
    and a folder that cannot be removed stays."""
    old: list[Path] = []
    with contextlib.suppress(OSError):  # of a cache that is only read, or another start that clears it, too
        os.utime(used, (now, now))
        old = list(_old(used, now))
    for folder in old:
        with contextlib.suppress(OSError):
            # Under another name first: whoever looks for it finds all of it or nothing.
            aside = folder.with_name(f".{folder.name.lstrip('.')}.{os.getpid()}")
            folder.rename(aside)
            shutil.rmtree(aside)
            say(f"Removed {folder}, which newer ones have taken the place of")


def _old(used: Path, now: float) -> Iterator[Path]:
    kinds: dict[str, list[tuple[float, Path]]] = {}
    for path in used.parent.iterdir():
        found = _OURS.fullmatch(path.name)
        kind = found[1] if found else "" if _UNFINISHED.fullmatch(path.name) else None
        if kind is not None and path.is_dir() and not path.is_symlink():
            kinds.setdefault(kind, []).append((path.stat().st_mtime, path))
    for kind, aged in kinds.items():
        aged.sort(reverse=True)
        for when, path in aged[NEWEST if kind else 0 :]:
            if path != used and now - when > UNUSED_S:
                yield path
