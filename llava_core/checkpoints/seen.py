"""Where in a picture its tokens lie: the tiles it is cut into and the grids of patches, as arithmetic on sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_core.checkpoints.anyres import Size, Unpadded, fitted, unpadded
from llava_core.inspection import Box, Grid, SeenPicture, Spot, Tile


@dataclass(frozen=True)
class Layout:
    """A picture's tokens, without where they stand in a prompt."""

    size: Size
    tiles: tuple[Tile, ...]
    grids: tuple[Grid, ...] = ()
    spots: tuple[Spot, ...] = ()
    separators: int = 0

    def at(self, start: int, tokens: int) -> SeenPicture:
        width, height = self.size
        return SeenPicture(width, height, start, tokens, self.tiles, self.grids, self.spots, self.separators)


def whole(size: Size) -> Box:
    return Box(0.0, 0.0, float(size[0]), float(size[1]))


def squared(size: Size) -> Box:
    """The square around a picture that it is padded to."""
    width, height = size
    side = max(size)
    left, top = (width - side) / 2, (height - side) / 2
    return Box(left, top, left + side, top + side)


def cropped(size: Size, edge: float, crop: Size) -> Box:
    """What is left of a picture whose shorter side was scaled to `edge` and whose middle was then cut out."""
    scale = edge / min(size)
    width, height = crop[0] / scale, crop[1] / scale
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return Box(left, top, left + width, top + height)


def seen_by(processor: Any, size: Size) -> Box:
    """The part of a picture that a processor of single tiles shows its tower: stretched, cut out, or padded."""
    if getattr(processor, "do_pad", None) and not getattr(processor, "pad_size", None):
        return squared(size)
    edge = processor.size.get("shortest_edge") if getattr(processor, "do_resize", None) else None
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", None) else None
    if edge and crop:
        return cropped(size, edge, (crop["width"], crop["height"]))
    return whole(size)


def one_tile(size: Size, box: Box, pixels: Size, tokens: int, *, before: int = 0, last: int = 0) -> Layout:
    """One tile of square patches. `before` tokens come first that show all of it, `last` at the end nothing."""
    tile = Tile("whole", box, *pixels, tokens)
    side = math.isqrt(tokens - before - last)
    if side * side != tokens - before - last:
        return Layout(size, (tile,), separators=last)
    spots = tuple(Spot(place, "the whole picture", box) for place in range(before))
    return Layout(size, (tile,), (Grid(before, side, side, side, box),), spots, last)


def any_res(
    size: Size,
    target: Size,
    *,
    tile: int,
    side: int,
    kept: Unpadded | None,
    shrunk: tuple[int, int] | None = None,
    newline: bool = True,
    whole_tokens: int | None = None,
) -> Layout:
    """The whole picture squeezed into a tile, then its tiles on a canvas of `target` pixels: as one grid of rows, of
    which those `kept` remain (None: padding and all), resampled to `shrunk` rows and columns where that is given."""
    down, across = target[1] // tile, target[0] // tile
    unit = tile / side
    kept = kept or Unpadded(0, down * side, 0, across * side)
    place = _Canvas.of(size, target)
    area = place.box(kept.left * unit, kept.top * unit, kept.right * unit, kept.bottom * unit)
    rows, columns = shrunk or (kept.rows, kept.columns)
    base = side * side if whole_tokens is None else whole_tokens
    first = Tile("whole", whole(size), tile, tile, base)
    tall = [_centre(row, rows, kept.top, kept.bottom) // side for row in range(rows)]
    wide = [_centre(column, columns, kept.left, kept.right) // side for column in range(columns)]
    parts = tuple(
        Tile(
            "tile",
            place.box(x * tile, y * tile, (x + 1) * tile, (y + 1) * tile),
            tile,
            tile,
            tall.count(y) * wide.count(x),
        )
        for y in range(down)
        for x in range(across)
    )
    grids = (
        Grid(base - side * side, side, side, side, whole(size)),
        Grid(base, rows, columns, columns + newline, area),
    )
    return Layout(size, (first, *parts), grids, separators=rows if newline else 0)


def tile_by_tile(size: Size, boxes: Sequence[Box], pixels: int, each: int, *, before: int = 0) -> Layout:
    """Tiles of equally many tokens one after the other; the box that holds all of the picture is the whole one."""
    entire = whole(size)
    tiles = tuple(Tile("whole" if box == entire else "tile", box, pixels, pixels, each) for box in boxes)
    side = math.isqrt(each - before)
    if side * side != each - before:
        return Layout(size, tiles)
    grids = tuple(Grid(place * each + before, side, side, side, box) for place, box in enumerate(boxes))
    return Layout(size, tiles, grids)


def canvas_tiles(size: Size, target: Size, tile: int) -> list[Box]:
    """The boxes of the tiles of a canvas on which the picture stands in the middle, in reading order."""
    place = _Canvas.of(size, target)
    return [place.box(x, y, x + tile, y + tile) for y in range(0, target[1], tile) for x in range(0, target[0], tile)]


def stretched_tiles(size: Size, across: int, down: int) -> list[Box]:
    """The boxes of tiles over a picture that was stretched to fill them, in reading order."""
    wide, tall = size[0] / across, size[1] / down
    return [Box(x * wide, y * tall, (x + 1) * wide, (y + 1) * tall) for y in range(down) for x in range(across)]


def kept_of(size: Size, target: Size, tile: int, side: int, *, digits: int | None = None) -> Unpadded:
    return unpadded(size, target[1] // tile * side, target[0] // tile * side, digits=digits)


@dataclass(frozen=True)
class _Canvas:
    """How a picture stands on a canvas: scaled to fit, in the middle."""

    left: float
    top: float
    across: float
    """Pixels of the picture for one of the canvas."""
    down: float

    @classmethod
    def of(cls, size: Size, target: Size) -> _Canvas:
        width, height = fitted(size, target)
        return cls((target[0] - width) // 2, (target[1] - height) // 2, size[0] / width, size[1] / height)

    def box(self, left: float, top: float, right: float, bottom: float) -> Box:
        return Box(
            (left - self.left) * self.across,
            (top - self.top) * self.down,
            (right - self.left) * self.across,
            (bottom - self.top) * self.down,
        )


def _centre(place: int, count: int, first: int, last: int) -> int:
    """The patch of the canvas in which the middle of one of `count` steps from `first` to `last` lies."""
    return int(first + (place + 0.5) * (last - first) / count)
