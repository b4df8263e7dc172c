"""Samples as tensors: lessons with their pictures' features or pixels, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from llava_core.train.feature_cache import FeatureCache
from llava_core.train.lessons import Lesson, Teacher
from llava_core.train.pictures import picture_size, read_picture
from llava_core.train.records import BadSample, Picture, Sample, to_sample
from llava_core.train.sources import Source, locate

IGNORED = -100


@dataclass(frozen=True)
class Item:
    """`tiles` are the pictures' features (rows of the tower) or, without a cache, their pixels; per picture how many
    tiles it has and its height and width."""

    lesson: Lesson
    tiles: tuple[torch.Tensor, ...]
    sizes: tuple[tuple[int, int], ...]


class PictureSide:
    """What the checkpoint does with a picture, counted and prepared by the code that serves it."""

    def __init__(self, vision: Any) -> None:
        self.vision = vision

    @cached_property
    def _tile(self) -> int:
        """Feature rows of any picture, where it becomes one tile."""
        return int(self.vision.prepare(Image.new("RGB", (64, 64)), alone=True).tokens)

    def count(self, picture: Picture) -> int:
        """Feature rows of a picture, from its header alone where they depend on its size."""
        size = picture_size(picture)
        if hasattr(self.vision, "count"):
            return self.vision.count(size)
        return self._tile

    def prepare(self, picture: Picture) -> tuple[torch.Tensor, tuple[int, int], int]:
        """Pixels (tiles, 3, height, width), the picture's own height and width, and its feature rows."""
        image = read_picture(picture)
        done = self.vision.prepare(image, alone=True)
        return done.inputs["pixel_values"], (image.height, image.width), done.tokens


class Lessons(Dataset[Item]):
    """Lessons by index, made on demand."""

    def __init__(
        self,
        source: Source,
        teacher: Teacher,
        side: PictureSide,
        *,
        max_length: int,
        pictures_first: bool = True,
        cache: FeatureCache | None = None,
    ) -> None:
        self.source = source
        self.teacher = teacher
        self.side = side
        self.max_length = max_length
        self.pictures_first = pictures_first
        self.cache = cache

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int) -> Sample:
        """Raises BadSample."""
        inner, at = locate(self.source, index)
        record = inner.record(at)
        return to_sample(record, inner.place(at), inner.pictures, pictures_first=self.pictures_first)

    def lesson(self, sample: Sample) -> Lesson:
        """Raises BadSample, also for one that is too long."""
        lesson = self.teacher.lesson(sample.messages, [self.side.count(picture) for picture in sample.pictures])
        if len(lesson.ids) > self.max_length:
            raise BadSample(f"it has {len(lesson.ids)} tokens, {self.max_length} are allowed (--max-length)")
        return lesson

    def __getitem__(self, index: int) -> Item:
        sample = self.sample(index)
        lesson = self.lesson(sample)
        tiles: list[torch.Tensor] = []
        sizes: list[tuple[int, int]] = []
        for picture in sample.pictures:
            if self.cache is not None:
                known = self.cache.load(self.cache.key_of(picture))
                tiles.append(known.rows)
                sizes.append((known.size[1], known.size[0]))
            else:
                pixels, size, _ = self.side.prepare(picture)
                tiles.append(pixels)
                sizes.append(size)
        return Item(lesson, tuple(tiles), tuple(sizes))


@dataclass(frozen=True)
class Collate:
    """Items to a batch of the model: end to end in one row, or padded. `cached` says what the tiles hold."""

    packing: bool
    cached: bool
    pad: int = 0

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        batch = _packed(items) if self.packing else _padded(items, self.pad)
        tiles = [part for item in items for part in item.tiles]
        if tiles:
            batch["features" if self.cached else "pixel_values"] = torch.cat(tiles)
            batch["tiles"] = [len(part) for part in tiles]
            batch["image_sizes"] = torch.tensor([size for item in items for size in item.sizes])
        return batch


def _packed(items: Sequence[Item]) -> dict[str, Any]:
    lengths = [len(item.lesson.ids) for item in items]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {
        "input_ids": torch.tensor([[token for item in items for token in item.lesson.ids]]),
        "shift_labels": torch.tensor([[label for item in items for label in item.lesson.labels(IGNORED)]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "bounds": bounds,
        "longest": max(lengths),
    }


def _padded(items: Sequence[Item], pad: int) -> dict[str, Any]:
    longest = max(len(item.lesson.ids) for item in items)
    ids = torch.full((len(items), longest), pad)
    labels = torch.full((len(items), longest), IGNORED)
    mask = torch.zeros((len(items), longest), dtype=torch.long)
    for row, item in enumerate(items):
        length = len(item.lesson.ids)
        ids[row, :length] = torch.tensor(item.lesson.ids)
        labels[row, :length] = torch.tensor(item.lesson.labels(IGNORED))
        mask[row, :length] = 1
    return {"input_ids": ids, "shift_labels": labels, "attention_mask": mask}
