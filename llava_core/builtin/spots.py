"""What each of the built-in model's 36 tokens stands for, and where in the picture that is."""

from __future__ import annotations

from typing import Any

import torch

from llava_core.builtin.columns import LETTER_ROWS, LETTERS, OBJECTS, REGIONS, ROWS, SIDES, Columns
from llava_core.inspection import Box, Spot

_OBJECT, _LETTER = 1 / 5, 1 / 9
"""How much of the picture's side a thing or letter is drawn over: where its middle is is known, its size is not."""


def spots(model: Any, pixels: torch.Tensor, shown: Box) -> tuple[Spot, ...]:
    """The tower looks once more, since features do not tell where letters are. `shown` is what its pixels show."""
    tower = model.model.vision_tower
    columns: Columns = tower.columns
    pixels = pixels.to(next(tower.parameters()))
    table = tower(pixels).last_hidden_state[0].float()
    maps = tower.finder(pixels)["letters"].float()
    cells, _ = columns.letter_cells(maps)

    def around(x: float, y: float, share: float) -> Box:
        wide, tall = shown.right - shown.left, shown.bottom - shown.top
        left, top = shown.left + (x - share / 2) * wide, shown.top + (y - share / 2) * tall
        return Box(left, top, left + share * wide, top + share * tall)

    found = [Spot(0, "the whole picture", shown), Spot(1, "how many things and colours there are")]
    for region in range(REGIONS):
        row, side = divmod(region, 3)
        box = around((side + 0.5) / 3, (row + 0.5) / 3, 1 / 3)
        found.append(Spot(2 + region, f"the {ROWS[row]} {SIDES[side]}", box))
    first = 2 + REGIONS
    for place in range(OBJECTS):
        values = table[first + place]
        if values[3] < 0.5:
            found.append(Spot(first + place, "no thing"))
            continue
        # Nine steps each way say how far to the right and down it is.
        x, y = (float((values[columns.place(name)] > 0.25).sum()) / 9 for name in ("x", "y"))
        found.append(Spot(first + place, f"thing {place + 1}", around(x, y, _OBJECT)))
    first += OBJECTS
    side = maps.shape[-1]
    for place in range(LETTER_ROWS):
        values = table[first + place]
        if values[4] < 0.5:
            found.append(Spot(first + place, "no letter"))
            continue
        down, across = divmod(int(cells[0, place]), side)
        letter = LETTERS[int(values[columns.place("letter")].argmax())]
        box = around((across + 0.5) / side, (down + 0.5) / side, _LETTER)
        found.append(Spot(first + place, f"the letter {letter}", box))
    return tuple(found)
