"""Encodes the pictures of a run with the frozen tower, before training, where their features are not yet on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from llava_core.checkpoints.hub import read_side
from llava_core.checkpoints.recognise import recognise
from llava_core.train.dataset import PictureSide
from llava_core.train.feature_cache import FeatureCache, Features, cache_key
from llava_core.train.learn import choose_precision, load_model
from llava_core.train.records import Picture
from llava_core.train.settings import settle
from llava_core.train.tower import register_towers

AT_ONCE = 32
"""Tiles in one call of the tower."""


@dataclass(frozen=True)
class Pace:
    """How long encoding takes: seconds per picture, and bytes that one takes on disk."""

    seconds: float
    size: int


def tower_of(path: Path, root: Path) -> tuple[Any, PictureSide, FeatureCache]:
    """A checkpoint, what prepares pictures for its tower, and the cache of that tower's features below `root`: the one
    that a run with `--cache root` looks into."""
    register_towers()
    found = recognise(str(path))
    side = PictureSide(read_side(found).vision)
    settings = settle("finetune", None, {"model": str(path)})
    precision = choose_precision(settings.precision, "cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(found, settings, precision)
    key = cache_key(model, side.vision.processor, precision.frozen)
    return model, side, FeatureCache(root, key, precision.frozen)


def missing(pictures: Iterable[Picture], cache: FeatureCache) -> list[tuple[str, Picture]]:
    """Pictures that are not in the cache, each once, with their keys."""
    found: dict[str, Picture] = {}
    for picture in pictures:
        key = cache.key_of(picture)
        if key not in found and key not in cache:
            found[key] = picture
    cache.remember()
    return list(found.items())


def fill(
    model: Any,
    side: PictureSide,
    cache: FeatureCache,
    wanted: Sequence[tuple[str, Picture]],
    *,
    workers: int = 0,
    tick: Callable[[int], None],
) -> None:
    """Encode and keep them. BadRequest when the disk has no room."""
    if not wanted:
        return
    cache.check_room(measure(model, side, cache, wanted[:1]).size * len(wanted))
    done = 0
    with cache.writer() as writer, torch.inference_mode():
        for batch in _batches(side, wanted, workers):
            features = encode(model, [pixels for _, pixels, _ in batch])
            writer.add([(key, Features(rows, size)) for (key, _, size), rows in zip(batch, features, strict=True)])
            done += len(batch)
            tick(done)


@torch.inference_mode()
def measure(model: Any, side: PictureSide, cache: FeatureCache, some: Sequence[tuple[str, Picture]]) -> Pace:
    """Encode some without keeping them."""
    started = time.perf_counter()
    size = 0
    for batch in _batches(side, some, 0):
        for rows in encode(model, [pixels for _, pixels, _ in batch]):
            size = max(size, cache.bytes_of(*rows.shape))
    return Pace((time.perf_counter() - started) / max(1, len(some)), size)


def encode(model: Any, pixels: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Features of each picture, (tiles, rows, columns)."""
    tiles = torch.cat(list(pixels))
    found = torch.cat([model.tower_features(some) for some in tiles.split(AT_ONCE)])
    return found.split([len(each) for each in pixels])


_Prepared = tuple[str, torch.Tensor, tuple[int, int]]


def _batches(side: PictureSide, wanted: Sequence[tuple[str, Picture]], workers: int) -> Iterator[list[_Prepared]]:
    loaded: Any = DataLoader(_Pixels(side, wanted), batch_size=AT_ONCE, num_workers=workers, collate_fn=list)  # pyright: ignore[reportArgumentType]
    yield from loaded


class _Pixels:
    def __init__(self, side: PictureSide, wanted: Sequence[tuple[str, Picture]]) -> None:
        self._side = side
        self._wanted = wanted

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, index: int) -> _Prepared:
        key, picture = self._wanted[index]
        pixels, (height, width), _ = self._side.prepare(picture)
        return key, pixels, (width, height)
