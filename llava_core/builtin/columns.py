"""The table that the tower fills in: 36 rows (whole picture, sums, regions, objects, letters) of named columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "bar", "picture")
"""`bar` is one of a chart, `picture` a thing that has a name rather than a shape."""
SIZES = ("small", "large")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
VALUES = tuple(range(11))
SMALL_PHOTOS = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KINDS = ("photo", "drawing", "shapes", "text", "chart", "small photo")
ROWS = ("top", "middle", "bottom")
SIDES = ("left", "center", "right")
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

OBJECTS, LETTER_ROWS, REGIONS = 9, 16, 9
"""Rows of each kind. With the whole picture and its sums they make 36."""
_LIKELY, _SURE, _DECIDED = 1.5, 1.5, 2.0
"""How much speaks for a photograph beforehand, and how much more if the classifier is sure; how far the likeliest kind
is set off against the others."""


@dataclass(frozen=True)
class Columns:
    """Where each group of columns lies in a row; `names` is how many drawn things have names."""

    names: int

    CLASSES: ClassVar[int] = 1000
    SMALL_PHOTO: ClassVar[int] = len(SMALL_PHOTOS)
    KINDS: ClassVar[int] = len(KINDS)
    OBJECT_MAPS: ClassVar[int] = 1 + len(COLOURS) + len(SHAPES) + len(SIZES) + len(VALUES)
    LETTER_MAPS: ClassVar[int] = 1 + len(LETTERS)

    def groups(self) -> list[tuple[str, int]]:
        return [
            ("row kind", 5),
            ("class", self.CLASSES),
            ("name", self.names),
            ("small photo", len(SMALL_PHOTOS)),
            ("kind", len(KINDS)),
            ("colour", len(COLOURS)),
            ("shape", len(SHAPES)),
            ("size", len(SIZES)),
            ("value", len(VALUES)),
            ("letter", len(LETTERS)),
            ("row", len(ROWS)),
            ("side", len(SIDES)),
            ("x", 9),
            ("y", 9),
            ("count", len(COUNTS)),
            ("colour sum", len(COLOURS)),
            ("shape sum", len(SHAPES)),
        ]

    def place(self, group: str) -> slice:
        start = 0
        for name, width in self.groups():
            if name == group:
                return slice(start, start + width)
            start += width
        raise KeyError(group)

    @property
    def total(self) -> int:
        return sum(width for _, width in self.groups())

    def lay_out(self, described: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> torch.Tensor:
        """Every row of every picture: (pictures, 36, columns)"""
        objects = self._objects(found["objects"].float(), described["cell_names"].float())
        letters = self._letters(found["letters"].float())
        whole = self._whole(described)
        regions = self._regions(described, whole[:, 0, self.place("kind")][:, :1])
        rows = [whole, self._sums(objects, letters), regions, objects, letters]
        table = torch.cat(rows, 1)
        return table.to(described["classes"].dtype)

    def _blank(self, like: torch.Tensor, rows: int, kind: int) -> torch.Tensor:
        table = torch.zeros(like.shape[0], rows, self.total, device=like.device)
        table[..., kind] = 1
        return table

    def _whole(self, described: dict[str, torch.Tensor]) -> torch.Tensor:
        table = self._blank(described["classes"], 1, 0)
        kinds = kinds_of(described["kinds"].float(), described["classes"].float())
        is_photo, is_drawing, is_small = (
            kinds[:, KINDS.index(kind), None] for kind in ("photo", "drawing", "small photo")
        )
        # A photograph has a class, a drawing a name, and only small photographs are of those ten kinds.
        table[:, 0, self.place("class")] = sharpened(described["classes"].float()) * is_photo
        table[:, 0, self.place("name")] = guessed(described["names"].float()) * is_drawing
        table[:, 0, self.place("small photo")] = sharpened(described["small_photo"].float()) * is_small
        table[:, 0, self.place("kind")] = kinds
        return table

    def _regions(self, described: dict[str, torch.Tensor], is_photo: torch.Tensor) -> torch.Tensor:
        classes = described["region_classes"].float().flatten(2).transpose(1, 2)
        table = self._blank(classes, REGIONS, 2)
        table[..., self.place("class")] = sharpened(classes) * 0.5 * is_photo[:, None]
        eye = torch.eye(3, device=classes.device)
        table[..., self.place("row")] = eye.repeat_interleave(3, 0)
        table[..., self.place("side")] = eye.repeat(3, 1)
        return table

    def _objects(self, maps: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        side = maps.shape[-1]
        heat = maps[:, 0].sigmoid()
        peaks = heat * (F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat)
        scores, cells = peaks.flatten(1).topk(OBJECTS, 1)
        on = scores > 0.4
        x, y = cells % side, cells // side
        # From left to right, what was not found last.
        order = torch.where(on, x * side + y, torch.full_like(x, side * side)).argsort(1)
        cells, on, x, y = (part.gather(1, order) for part in (cells, on, x, y))
        here = maps.flatten(2).gather(2, cells[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)
        colour, shape, size, value = here[..., 1:].split((len(COLOURS), len(SHAPES), len(SIZES), len(VALUES)), -1)
        shape = shape.softmax(-1)
        table = torch.zeros(*cells.shape, self.total, device=maps.device)
        table[..., self.place("colour")] = colour.softmax(-1) * (1 - shape[..., 9:10])
        table[..., self.place("shape")] = shape
        table[..., self.place("size")] = size.softmax(-1) * (1 - shape[..., 8:].sum(-1, keepdim=True))
        table[..., self.place("value")] = value.softmax(-1) * shape[..., 8:9]
        scale = names.shape[-1] / side
        near = (y * scale).long() * names.shape[-1] + (x * scale).long()
        called = names.flatten(2).gather(2, near[:, None].expand(-1, names.shape[1], -1)).transpose(1, 2)
        table[..., self.place("name")] = guessed(called) * shape[..., 9:10]
        self._put_place(table, (x + 0.5) / side, (y + 0.5) / side)
        table = table * on[..., None]
        table[..., 3] = on.float()
        return table

    def _letters(self, maps: torch.Tensor) -> torch.Tensor:
        cells, on = self.letter_cells(maps)
        here = maps.flatten(2).gather(2, cells[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)
        table = torch.zeros(*cells.shape, self.total, device=maps.device)
        table[..., self.place("letter")] = here[..., 1:].softmax(-1)
        table = table * on[..., None]
        table[..., 4] = on.float()
        return table

    def letter_cells(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cells of the finder's map of letters in reading order, and which of them hold one."""
        side = maps.shape[-1]
        heat = maps[:, 0].sigmoid()
        # Letters stand side by side, so that only a neighbour above, below or beside may be the same one.
        peaks = heat * (F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat)
        scores, cells = peaks.flatten(1).topk(LETTER_ROWS, 1)
        on = scores > 0.4
        x, y = cells % side, cells // side
        line = _lines(y, on)
        order = torch.where(on, line * side + x, torch.full_like(x, 10_000)).argsort(1)
        return cells.gather(1, order), on.gather(1, order)

    def _sums(self, objects: torch.Tensor, letters: torch.Tensor) -> torch.Tensor:
        table = self._blank(objects, 1, 1)
        many = objects[..., 3].sum(1).long().clamp(max=len(COUNTS) - 1)
        table[:, 0, self.place("count")] = F.one_hot(many, len(COUNTS)).to(table.dtype)
        table[:, 0, self.place("colour sum")] = objects[..., self.place("colour")].sum(1) / 3
        table[:, 0, self.place("shape sum")] = objects[..., self.place("shape")].sum(1) / 3
        return table

    def _put_place(self, table: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> None:
        thirds = torch.arange(3, device=x.device)
        table[..., self.place("row")] = ((y * 3).long()[..., None] == thirds).to(table.dtype)
        table[..., self.place("side")] = ((x * 3).long()[..., None] == thirds).to(table.dtype)
        steps = (torch.arange(9, device=x.device) + 0.5) / 9
        table[..., self.place("x")] = (x[..., None] > steps).to(table.dtype) * 0.5
        table[..., self.place("y")] = (y[..., None] > steps).to(table.dtype) * 0.5


def kinds_of(scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Which kind of picture it is, decided rather than weighed. Sharp photographs were few among those that kinds were
    learned from, and all of birds, so others are taken for drawings by a hair: that is made up for. A classifier of
    photographs that is sure of its class speaks for one, too."""
    sure = (classes.softmax(-1).amax(-1) * 2 - 1).clamp(min=0)
    photo = torch.tensor([kind == "photo" for kind in KINDS], device=scores.device)
    return ((scores + (_LIKELY + _SURE * sure[:, None]) * photo) * _DECIDED).softmax(-1)


def sharpened(scores: torch.Tensor) -> torch.Tensor:
    """Probabilities without the long tail: what is under a twentieth is nothing."""
    likely = scores.softmax(-1)
    return likely * (likely > 0.05)


def guessed(scores: torch.Tensor) -> torch.Tensor:
    """The likeliest as loud as if it were sure, the next far behind: of 800 names even a right one is rarely likely,
    and what is said too quietly no language model hears."""
    likely = (scores * 8).softmax(-1)
    return likely * (likely > 0.05)


def _lines(y: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
    """Which line of text each letter stands on, told by gaps of more than two cells between heights."""
    sorted_y, order = torch.where(on, y, torch.full_like(y, 10_000)).sort(1)
    gaps = torch.cat((torch.zeros_like(sorted_y[:, :1]), (sorted_y.diff(dim=1) > 1).long()), 1)
    return torch.zeros_like(y).scatter(1, order, gaps.cumsum(1))
