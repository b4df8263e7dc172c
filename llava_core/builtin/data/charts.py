"""Bar charts with values from 0 to 10, lines to read them by, and a letter under each bar."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from llava_core.builtin.columns import COLOURS
from llava_core.builtin.data.drawing import SIDE, Drawn, Letter, Thing, shade
from llava_core.builtin.data.texts import faces, font_of, put_word

_BARS = tuple(colour for colour in COLOURS if colour not in ("white", "black"))


def draw_chart(dice: random.Random) -> Drawn:
    """Three to five bars of different colours."""
    image = Image.new("RGB", (SIDE, SIDE), shade("white", dice))
    pen = ImageDraw.Draw(image)
    many = dice.randint(3, 5)
    left, right = dice.uniform(0.1, 0.15) * SIDE, dice.uniform(0.93, 0.97) * SIDE
    top, bottom = dice.uniform(0.06, 0.12) * SIDE, dice.uniform(0.83, 0.87) * SIDE
    font = font_of(dice.choice(faces()), 13)
    step = (bottom - top) / 10
    axis = (70, 70, 70)
    for value in range(11):
        y = bottom - value * step
        if value % 2 == 0:
            pen.text((left - 5, y), str(value), font=font, fill=axis, anchor="rm")
        pen.line((left, y, right, y), fill=(215, 215, 215) if value else axis, width=1)
    pen.line((left, top, left, bottom), fill=axis, width=1)
    wide = (right - left) / many
    things: list[Thing] = []
    letters: list[Letter] = []
    for index, colour in enumerate(dice.sample(_BARS, many)):
        value = dice.randint(1, 10)
        x = left + (index + 0.5) * wide
        y = bottom - value * step
        half = wide * dice.uniform(0.28, 0.36)
        pen.rectangle((x - half, y, x + half, bottom), fill=shade(colour, dice))
        label = "ABCDE"[index]
        big = font_of(dice.choice(faces()), 22)
        letters += put_word(pen, big, label, x - big.getlength(label) / 2, bottom + 0.07 * SIDE, (20, 20, 20))
        # The middle of the upper edge: what is there tells the value.
        things.append(Thing(x / SIDE, y / SIDE, half / SIDE, "bar", colour, value=value, label=label))
    return Drawn(image, "chart", tuple(things), tuple(letters))
