"""A projector that speaks from its first step on: each column of the tower stands for words of the language model.

Of the projector's hidden units some carry one column each; the others carry the classes' and names' words in pairs,
since `gelu(u) - gelu(-u) = u`. Training starts from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from llava_core.builtin.columns import (
    COLOURS,
    COUNTS,
    KINDS,
    LETTERS,
    ROWS,
    SHAPES,
    SIDES,
    SIZES,
    SMALL_PHOTOS,
    VALUES,
    Columns,
)

_STEEP = 4.0
"""GELU is nearly straight from here on."""
_WORDS: dict[str, tuple[str, ...]] = {
    "row kind": ("picture", "total", "region", "object", "letter"),
    "small photo": SMALL_PHOTOS,
    "kind": KINDS,
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "value": tuple(str(value) for value in VALUES),
    "letter": LETTERS,
    "row": ROWS,
    "side": SIDES,
    "count": COUNTS,
}
_SILENT = ("x", "y", "colour sum", "shape sum")
"""Columns that are no words: they start at small random directions."""
_LOUD = {"row kind": 0.3, "kind": 0.5, "size": 0.6, "row": 0.6, "side": 0.6}


def class_names() -> list[str]:
    return Path(__file__).with_name("class_names.txt").read_text("utf-8").split("\n")[:1000]


def anchored_projector(
    columns: Columns,
    names: Sequence[str],
    embed: Callable[[str], torch.Tensor],
    width: int,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Weights of an `mlp2x_gelu` projector; `embed` gives a word's embedding, `width` is the language model's."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.zeros(width, columns.total)
    second = torch.zeros(width, width)
    unit = 0
    for group, size in columns.groups():
        if group in ("class", "name"):
            continue
        place = columns.place(group)
        loud = _LOUD.get(group, 1.0)
        for index in range(size):
            first[unit, place.start + index] = _STEEP
            word = 0.03 * torch.randn(width, generator=generator) if group in _SILENT else embed(_WORDS[group][index])
            second[:, unit] = loud * word / _STEEP
            unit += 1
    words = torch.stack([embed(word) for word in [*class_names(), *names]])
    pairs = (width - unit) // 2
    left, strength, right = torch.linalg.svd(words, full_matrices=False)
    part = (left[:, :pairs] * strength[:pairs]).T * _STEEP
    where = torch.cat([torch.arange(columns.total)[columns.place(group)] for group in ("class", "name")])
    for sign in (1, -1):
        rows = slice(unit, unit + pairs)
        first[rows, where] = sign * part
        second[:, rows] = sign * right[:pairs].T / _STEEP
        unit += pairs
    return {
        "linear_1.weight": first,
        "linear_1.bias": torch.zeros(width),
        "linear_2.weight": second,
        "linear_2.bias": torch.zeros(width),
    }


def embedder(tokenizer: object, table: torch.Tensor) -> Callable[[str], torch.Tensor]:
    """A word's embedding: the mean of its tokens', as they stand in the middle of a sentence."""

    def embed(word: str) -> torch.Tensor:
        ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        return table[ids].float().mean(0)

    return embed
