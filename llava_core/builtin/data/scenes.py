"""Scenes of coloured shapes, and of icons on photographs, with the place of everything."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image

from llava_core.builtin.columns import COLOURS
from llava_core.builtin.data.drawing import SIDE, Drawn, Thing, background, draw_shape

DRAWN_SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
_APART = 36 / SIDE
"""Centres are at least two cells of the tower's map apart."""


def draw_scene(dice: random.Random, photo: Image.Image | None = None, most: int = 6) -> Drawn:
    """One to `most` shapes that do not touch."""
    image, hidden = background(dice, photo)
    colours = [colour for colour in COLOURS if colour not in hidden]
    # Few colours and shapes in a picture, so that "the red one" and "how many stars" are worth asking.
    some_colours = dice.sample(colours, dice.randint(1, min(5, len(colours))))
    some_shapes = dice.sample(DRAWN_SHAPES, dice.randint(1, 5))
    things: list[Thing] = []
    for x, y, radius in _places(dice, dice.randint(1, most), 0.058, 0.17):
        size = "small" if radius < 0.095 else "large"
        thing = Thing(x, y, radius, dice.choice(some_shapes), dice.choice(some_colours), size)
        draw_shape(image, thing, dice)
        things.append(thing)
    return Drawn(image, "shapes", tuple(sorted(things, key=lambda thing: thing.x)))


def draw_icons(
    dice: random.Random,
    icons: list[tuple[str, Callable[[int], Image.Image]]],
    photo: Image.Image | None = None,
    shapes: bool = False,
) -> Drawn:
    """Icons beside each other, on a photograph or a plain ground, perhaps with a shape or two between them."""
    image, hidden = background(dice, photo)
    colours = [colour for colour in COLOURS if colour not in hidden]
    things: list[Thing] = []
    if len(icons) == 1 and not shapes:
        radius = dice.uniform(0.26, 0.46)
        places = [(0.5 + dice.uniform(-0.04, 0.04), 0.5 + dice.uniform(-0.04, 0.04), radius)]
    else:
        places = _places(dice, len(icons) + (dice.randint(1, 2) if shapes else 0), 0.12, 0.2)
    for (x, y, radius), icon in zip(places, [*icons, None, None], strict=False):
        if icon is None:
            thing = Thing(x, y, radius * 0.7, dice.choice(DRAWN_SHAPES), dice.choice(colours), "")
            draw_shape(image, thing, dice)
        else:
            thing = Thing(x, y, radius, "picture", name=icon[0])
            layer = icon[1](round(radius * 2 * SIDE))
            image.paste(layer, (round(x * SIDE - layer.width / 2), round(y * SIDE - layer.height / 2)), layer)
        things.append(thing)
    name = icons[0][0] if len(icons) == 1 and not shapes else ""
    return Drawn(image, "drawing", tuple(sorted(things, key=lambda thing: thing.x)), name=name)


def _places(dice: random.Random, many: int, least: float, most: float) -> list[tuple[float, float, float]]:
    """Places and radii that neither touch nor stand on the line between left, center and right."""
    found: list[tuple[float, float, float]] = []
    for _ in range(400):
        if len(found) == many:
            break
        radius = dice.uniform(least, most) if dice.random() < 0.7 else dice.uniform(least, (least + most) / 2)
        if least < 0.1 and 0.085 < radius < 0.112:
            continue
        x, y = (dice.uniform(radius + 0.015, 0.985 - radius) for _ in range(2))
        if any(abs(part - third) < 0.035 for part in (x, y) for third in (1 / 3, 2 / 3)):
            continue
        clear = all(
            (x - x2) ** 2 + (y - y2) ** 2 > ((radius + r2) * 1.12) ** 2
            and max(abs(x - x2), abs(y - y2)) > _APART
            and abs(x - x2) > 0.03
            for x2, y2, r2 in found
        )
        if clear:
            found.append((x, y, radius))
    return found
