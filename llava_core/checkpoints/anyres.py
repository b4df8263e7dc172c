"""How the original LLaVA code cuts a picture of any resolution into tiles, and how many tokens it becomes.

Pure arithmetic. Sizes are (width, height). llava-hf rounds elsewhere and orders its grid by (height, width), so the
two choose other tilings for some small pictures (LLaVA-NeXT, "Dynamic High Resolution").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]


@dataclass(frozen=True)
class Unpadded:
    """The part of a grid of patches that shows the picture and not the padding: rows `top` to `bottom`, columns
    `left` to `right`, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        return self.bottom - self.top

    @property
    def columns(self) -> int:
        return self.right - self.left


@dataclass(frozen=True)
class Grid:
    """The tilings a checkpoint may choose from: `resolutions` in its order, tiles of `tile` pixels a side made of
    patches of `patch` pixels."""

    resolutions: tuple[Size, ...]
    tile: int
    patch: int

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.tile // self.patch


def best_resolution(size: Size, resolutions: Sequence[Size]) -> Size:
    """The resolution that keeps most of the picture's pixels; among equals, the one that wastes least."""
    width, height = size
    best, most, least = resolutions[0], -1, math.inf
    for candidate_width, candidate_height in resolutions:
        scale = min(candidate_width / width, candidate_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = candidate_width * candidate_height - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = (candidate_width, candidate_height), kept, wasted
    return best


def fitted(size: Size, target: Size) -> Size:
    """The size of the picture after it was scaled to fit into `target`."""
    (width, height), (target_width, target_height) = size, target
    scale_width, scale_height = target_width / width, target_height / height
    if scale_width < scale_height:
        return target_width, min(math.ceil(height * scale_width), target_height)
    return min(math.ceil(width * scale_height), target_width), target_height


def tile_shape(size: Size, grid: Grid) -> tuple[int, int]:
    """Tiles down and across for a picture, the whole picture's own tile not counted."""
    width, height = best_resolution(size, grid.resolutions)
    return height // grid.tile, width // grid.tile


def unpadded(size: Size, rows: int, columns: int, *, digits: int | None = None) -> Unpadded:
    """Which of `rows` x `columns` patches remain when the padding around the picture is taken off.

    The original cuts fractions off as they come; llava-hf rounds to seven `digits` first.
    """

    def whole(length: float) -> int:
        return int(length if digits is None else round(length, digits))

    width, height = size
    if width / height > columns / rows:
        padding = (rows - whole(height * (columns / width))) // 2
        return Unpadded(padding, rows - padding, 0, columns)
    padding = (columns - whole(width * (rows / height))) // 2
    return Unpadded(0, rows, padding, columns - padding)


def tile_count(size: Size, grid: Grid) -> int:
    """Tiles the vision tower sees: the whole picture, then its parts."""
    down, across = tile_shape(size, grid)
    return 1 + down * across


def token_count(size: Size, grid: Grid) -> int:
    """Tokens of a picture with `spatial_unpad`: the whole picture's, the parts', and one at the end of each row."""
    down, across = tile_shape(size, grid)
    kept = unpadded(size, down * grid.side, across * grid.side)
    return grid.side**2 + kept.rows * (kept.columns + 1)
