"""What can be seen of a model at work: a picture's tiles, a prompt's tokens, and where an answer looked.

Everything here is plain data, which travels as JSON. Boxes are in the pixels of the picture as the model was given it;
they reach beyond it where the model saw padding.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_MOST = 65535


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Tile:
    """What the vision tower takes in one go: this part of the picture, scaled to `width` x `height` pixels. `whole` is
    the one that shows all of it beside tiles that show parts."""

    kind: Literal["whole", "tile"]
    box: Box
    width: int
    height: int
    tokens: int


@dataclass(frozen=True)
class Grid:
    """Tokens in reading order that share `box` evenly: row *r*, column *c* is token `start + r * stride + c`."""

    start: int
    rows: int
    columns: int
    stride: int
    box: Box


@dataclass(frozen=True)
class Spot:
    """One token that stands for something of its own; without a box it has no place in the picture."""

    token: int
    label: str
    box: Box | None = None


@dataclass(frozen=True)
class SeenPicture:
    """A picture of `width` x `height` as tokens, `start` of the prompt on. `separators` of them end rows of patches and
    show nothing."""

    width: int
    height: int
    start: int
    tokens: int
    tiles: tuple[Tile, ...]
    grids: tuple[Grid, ...] = ()
    spots: tuple[Spot, ...] = ()
    separators: int = 0


@dataclass(frozen=True)
class PromptPiece:
    """Some of a prompt's tokens: words of a person or of the template, one special token, or a whole picture.

    `texts` are those of the tokens; one that is only part of a character is joined to those that complete it.
    """

    kind: Literal["text", "special", "picture"]
    tokens: int
    texts: tuple[str, ...] = ()
    picture: int | None = None


@dataclass(frozen=True)
class SeenPrompt:
    """A chat as its model reads it. `answer` are the texts of the tokens of the answer that was sent along."""

    model: str
    tokens: int
    pieces: tuple[PromptPiece, ...]
    pictures: tuple[SeenPicture, ...]
    answer: tuple[str, ...] = ()


@dataclass(frozen=True)
class Looks:
    """How much of its attention each of a picture's tokens got: `rows` rows of them (a layer each, say).

    A row is 16-bit numbers, least byte first, as base64 all together; times its scale divided by 65535 they are shares
    of the whole attention.
    """

    rows: int
    tokens: int
    scales: tuple[float, ...]
    data: str

    @classmethod
    def pack(cls, rows: Sequence[Sequence[float]]) -> Looks:
        scales = tuple(max(row, default=0.0) for row in rows)
        numbers = array("H")
        for row, scale in zip(rows, scales, strict=True):
            numbers.extend(round(value / scale * _MOST) if scale > 0 else 0 for value in row)
        data = numbers if _is_little() else _swapped(numbers)
        return cls(len(rows), len(rows[0]) if rows else 0, scales, base64.b64encode(data.tobytes()).decode("ascii"))

    def unpack(self) -> list[list[float]]:
        numbers = array("H", base64.b64decode(self.data))
        if not _is_little():
            numbers = _swapped(numbers)
        return [
            [value * scale / _MOST for value in numbers[row * self.tokens : (row + 1) * self.tokens]]
            for row, scale in enumerate(self.scales)
        ]


@dataclass(frozen=True)
class PictureLooks:
    """On one picture: `layers` by the mean over heads, `rollout` through all layers (one row); `usual` is the same for
    the mean over all tokens of the answer, layers first, rollout last."""

    layers: Looks
    rollout: Looks
    usual: Looks


@dataclass(frozen=True)
class SeenAttention:
    """Where the model looked as it chose some tokens of its answer.

    `rollout_from` is the first token of the prompt whose own looking the rollout follows; what earlier ones had looked
    at is left out.
    """

    first: int
    count: int
    layers: int
    pictures: tuple[PictureLooks, ...]
    rollout_from: int


def _is_little() -> bool:
    return sys.byteorder == "little"


def _swapped(numbers: array[int]) -> array[int]:
    other = array("H", numbers)
    other.byteswap()
    return other
