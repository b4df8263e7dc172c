"""The folder of uploaded pictures: one process's own, and gone with it even where that was killed."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "llava-serve-page-"


@contextmanager
def upload_folder() -> Generator[Path]:
    """Whoever uses such a folder holds a lock on it, which ends with the process; so what is found without one was left
    by a page that had no time to delete it, and is deleted first."""
    root = Path(tempfile.gettempdir()).resolve()
    for left in root.glob(f"{_PREFIX}*"):
        _delete_if_left(left)
    # Locked before it has the name by which another page would take it for one that was left.
    made = Path(tempfile.mkdtemp(prefix="llava-serve-new-"))
    held = os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        folder = root / made.name.replace("llava-serve-new-", _PREFIX)
        made = made.rename(folder)
        yield folder
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(held)


def _delete_if_left(folder: Path) -> None:
    """Nothing that is somebody else's, or only a link: everybody writes to the folder for temporary files."""
    with suppress(OSError):
        found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(found).st_uid == os.getuid():
                fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                log.info("deleted %s, which a page that was killed had left", folder)
        finally:
            os.close(found)
