"""Features of a frozen vision tower on disk: each picture is encoded once, however many epochs and runs see it.

A folder per tower and preprocessing holds an index (SQLite) and files of raw numbers. Numbers are on disk before the
index names them, so a run that is killed leaves nothing half-written that could be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_core.errors import BadRequest
from llava_core.train.pictures import picture_bytes
from llava_core.train.records import Picture

WAIT_S = 60.0
"""For another process that writes to the index."""
_STORED: dict[torch.dtype, Any] = {torch.bfloat16: np.uint16, torch.float16: np.float16, torch.float32: np.float32}
_SHAPE = "file TEXT, start INTEGER, tiles INTEGER, rows INTEGER, columns INTEGER, width INTEGER, height INTEGER"


@dataclass(frozen=True)
class Features:
    """Of one picture: `rows` are (tiles, rows, columns); `size` is its width and height."""

    rows: torch.Tensor
    size: tuple[int, int]


def cache_key(model: Any, processor: Any, dtype: torch.dtype) -> str:
    """Equal for equal weights of the tower, preprocessing, choice of layer and precision."""
    digest = hashlib.sha256()
    settings = {
        "processor": processor.to_dict(),
        "layer": model.config.vision_feature_layer,
        "strategy": model.config.vision_feature_select_strategy,
        "pinpoints": getattr(model.config, "image_grid_pinpoints", None),
        "dtype": str(dtype),
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.model.vision_tower.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]


class FeatureCache:
    """Read by any number of processes at once; each writer has a file of its own."""

    def __init__(self, root: Path, key: str, dtype: torch.dtype) -> None:
        self.folder = root / key
        self.folder.mkdir(parents=True, exist_ok=True)
        self._dtype = dtype
        self._database: sqlite3.Connection | None = None
        self._opened_by = 0
        self._maps: dict[str, np.memmap] = {}
        self._hashed: list[tuple[str, str, str]] = []
        with self._index() as index:
            index.execute(f"CREATE TABLE IF NOT EXISTS pictures (key TEXT PRIMARY KEY, {_SHAPE}) WITHOUT ROWID")
            index.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp TEXT, key TEXT) WITHOUT ROWID"
            )

    def key_of(self, picture: Picture) -> str:
        """A hash of the picture's bytes; a file that did not change is not read again. Raises BadSample when it is not
        there any more."""
        try:
            found = None if isinstance(picture, bytes) else picture.stat()
        except OSError:
            found = None  # which reading it says in words
        if found is None or isinstance(picture, bytes):
            return hashlib.sha256(picture_bytes(picture)).hexdigest()
        path, stamp = str(picture.absolute()), f"{found.st_size}|{found.st_mtime_ns}"
        row = self._index().execute("SELECT key FROM files WHERE path = ? AND stamp = ?", (path, stamp)).fetchone()
        if row:
            return row[0]
        key = hashlib.sha256(picture_bytes(picture)).hexdigest()
        self._hashed.append((path, stamp, key))
        return key

    def remember(self) -> None:
        """Keep the hashes made since; one write for many, since each waits for the disk."""
        with self._index() as index:
            index.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", self._hashed)
        self._hashed = []

    def __contains__(self, key: str) -> bool:
        return self._index().execute("SELECT 1 FROM pictures WHERE key = ?", (key,)).fetchone() is not None

    def __len__(self) -> int:
        return self._index().execute("SELECT count(*) FROM pictures").fetchone()[0]

    def load(self, key: str) -> Features:
        row = self._index().execute("SELECT * FROM pictures WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        _, file, start, tiles, rows, columns, width, height = row
        end = start + tiles * rows * columns
        stored = np.array(self._map(file, end)[start:end])
        found = torch.from_numpy(stored).view(self._dtype)
        return Features(found.view(tiles, rows, columns), (width, height))

    def writer(self) -> Writer:
        return Writer(self)

    def bytes_of(self, tiles: int, rows: int, columns: int) -> int:
        return tiles * rows * columns * self._dtype.itemsize

    def check_room(self, size: int) -> None:
        """BadRequest when the disk has no room for that many bytes."""
        free = shutil.disk_usage(self.folder).free
        if size > 0.95 * free:
            raise BadRequest(
                f"features of all pictures take {size / 1e9:.1f} GB, but {str(self.folder)!r} has {free / 1e9:.1f} GB "
                "left; name another folder with --cache, or `--cache off` to encode pictures at every step",
                param="--cache",
            )

    def _index(self) -> sqlite3.Connection:
        # A connection must not cross a fork into the processes that load samples.
        if self._database is None or self._opened_by != os.getpid():
            self._database = sqlite3.connect(self.folder / "index.sqlite", timeout=WAIT_S)
            self._opened_by = os.getpid()
            self._maps = {}
        return self._database

    def _map(self, file: str, end: int) -> np.memmap:
        known = self._maps.get(file)
        if known is None or len(known) < end:
            known = np.memmap(self.folder / file, _STORED[self._dtype], mode="r")
            self._maps[file] = known
        return known

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_database": None, "_maps": {}}


class Writer:
    """Appends pictures; a context manager."""

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache
        self._name = f"features-{time.time_ns():x}-{os.getpid()}.bin"
        self._at = 0

    def __enter__(self) -> Writer:
        self._file = (self._cache.folder / self._name).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._at == 0:
            (self._cache.folder / self._name).unlink()

    def add(self, found: Iterator[tuple[str, Features]] | list[tuple[str, Features]]) -> None:
        entries: list[tuple[Any, ...]] = []
        for key, features in found:
            rows = features.rows.detach().to("cpu", self._cache._dtype).contiguous()
            self._file.write(rows.view(torch.uint8).numpy().data)
            entries.append((key, self._name, self._at, *rows.shape, *features.size))
            self._at += rows.numel()
        self._file.flush()
        os.fsync(self._file.fileno())
        with self._cache._index() as index:
            marks = ", ".join("?" * 8)
            index.executemany(f"INSERT OR IGNORE INTO pictures VALUES ({marks})", entries)
