"""Photographs as cameras take them, with the class that an ImageNet classifier is sure of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from llava_core.builtin.data.drawing import SIDE

SURE = 0.5
"""A class counts from this probability on."""
_TESTED = 0.15


class RealPhotos:
    """The photographs below a package's folder that the classifier is sure about."""

    def __init__(self, folder: Path, labels: dict[str, str], *, tested: bool | None) -> None:
        """Those that are kept for tests, those that are not, or (None) all."""
        self._folder = folder
        self.labels = {name: label for name, label in labels.items() if tested in (None, _is_tested(name))}
        self.names = sorted(self.labels)

    def picture(self, name: str) -> Image.Image:
        return Image.open(self._folder / name).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def photo_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))


def label_photos(
    folder: Path, kept: Path, classify: Callable[[Sequence[Image.Image]], list[tuple[str, float]]]
) -> dict[str, str]:
    """Labels by file name, kept in a file; `classify` gives the likeliest class of each picture and its probability."""
    if kept.exists():
        return dict(json.loads(kept.read_text("utf-8")))
    names = photo_files(folder)
    found: dict[str, str] = {}
    for at in range(0, len(names), 16):
        some = names[at : at + 16]
        images = [Image.open(folder / name).convert("RGB") for name in some]
        for name, (label, chance) in zip(some, classify(images), strict=True):
            if chance >= SURE:
                found[name] = label
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def _is_tested(name: str) -> bool:
    number = int.from_bytes(hashlib.sha256(Path(name).name.encode()).digest()[:4], "big")
    return number / 2**32 < _TESTED
