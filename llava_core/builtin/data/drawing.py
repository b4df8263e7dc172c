"""What is drawn: a picture and the truth about it, with the shapes, colours and backgrounds they are made of."""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFilter

SIDE = 288
_FINE = 3
"""Shapes are drawn this many times larger and shrunk, so that their edges are smooth."""

# Hue, saturation and value, each with how far it may stray.
_HSV: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((0.995, 0.012), (0.9, 0.1), (0.85, 0.12)),
    "orange": ((0.078, 0.014), (0.95, 0.05), (0.97, 0.03)),
    "yellow": ((0.148, 0.014), (0.9, 0.1), (0.96, 0.04)),
    "green": ((0.345, 0.05), (0.8, 0.2), (0.6, 0.15)),
    "blue": ((0.61, 0.03), (0.85, 0.15), (0.8, 0.15)),
    "purple": ((0.77, 0.02), (0.75, 0.15), (0.62, 0.1)),
    "pink": ((0.92, 0.025), (0.4, 0.1), (0.99, 0.01)),
    "brown": ((0.068, 0.015), (0.72, 0.12), (0.45, 0.07)),
    "black": ((0.5, 0.5), (0.05, 0.05), (0.08, 0.06)),
    "white": ((0.5, 0.5), (0.01, 0.01), (0.985, 0.015)),
    "gray": ((0.5, 0.5), (0.03, 0.03), (0.55, 0.09)),
}
Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """Something with a place. `x`, `y`, `radius` are parts of the side; bars have a `value`, icons a `name`."""

    x: float
    y: float
    radius: float
    shape: str
    colour: str = ""
    size: str = ""
    name: str = ""
    value: int | None = None
    label: str = ""

    @property
    def words(self) -> str:
        return self.name or f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Letter:
    """One letter and where its middle is."""

    letter: str
    x: float
    y: float


@dataclass(frozen=True)
class Drawn:
    """A picture and the truth about it. `kind` is a word of `columns.KINDS`."""

    image: Image.Image
    kind: str
    things: tuple[Thing, ...] = ()
    letters: tuple[Letter, ...] = ()
    words: tuple[str, ...] = ()
    name: str = ""
    facts: dict[str, str] = field(default_factory=dict)


def shade(colour: str, dice: random.Random) -> Rgb:
    """A shade that everybody would still call by that name."""
    (hue, hues), (saturation, saturations), (value, values) = _HSV[colour]

    def near(middle: float, spread: float) -> float:
        return middle + dice.uniform(-spread, spread)

    wish = (near(hue, hues) % 1, near(saturation, saturations), near(value, values))
    red, green, blue = colorsys.hsv_to_rgb(wish[0], min(max(wish[1], 0), 1), min(max(wish[2], 0), 1))
    return round(red * 255), round(green * 255), round(blue * 255)


def background(dice: random.Random, photo: Image.Image | None = None) -> tuple[Image.Image, set[str]]:
    """A ground to draw on, and the colours that would not be seen on it."""
    if photo is not None:
        soft = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return soft.filter(ImageFilter.GaussianBlur(dice.uniform(0, 4))), set()
    roll = dice.random()
    if roll < 0.45:
        return Image.new("RGB", (SIDE, SIDE), shade("white", dice)), {"white"}
    if roll < 0.55:
        return Image.new("RGB", (SIDE, SIDE), shade("black", dice)), {"black"}
    hue = dice.choice(sorted(set(_HSV) - {"red", "orange", "brown"}))
    ground = shade(hue, dice)
    pale: Rgb = tuple(round(255 - (255 - part) * dice.uniform(0.12, 0.3)) for part in ground)  # type: ignore[assignment]
    if roll < 0.85:
        return Image.new("RGB", (SIDE, SIDE), pale), {"white", hue, "pink" if hue in ("purple", "pink") else hue}
    other = shade("white", dice)
    ramp = Image.linear_gradient("L").resize((SIDE, SIDE)).rotate(dice.choice((0, 90, 180, 270)))
    over, under = (Image.new("RGB", (SIDE, SIDE), colour) for colour in (pale, other))
    return Image.composite(over, under, ramp), {"white", hue, "pink" if hue in ("purple", "pink") else hue}


def draw_shape(image: Image.Image, thing: Thing, dice: random.Random, fill: Rgb | None = None) -> None:
    """Put a shape where it belongs, turned a little, sometimes with an outline."""
    fill = fill or shade(thing.colour, dice)
    radius = thing.radius * SIDE
    side = math.ceil(radius * 2.9) * _FINE
    layer = Image.new("RGBA", (side, side), (*fill, 0))
    pen = ImageDraw.Draw(layer)
    r, middle = radius * _FINE, side / 2
    line = tuple(round(part * 0.55) for part in fill) if dice.random() < 0.25 else None
    width = round(2.2 * _FINE)
    if thing.shape in ("circle", "ring"):
        box = (middle - r, middle - r, middle + r, middle + r)
        if thing.shape == "ring":
            pen.ellipse(box, outline=(*fill, 255), width=round(r * 0.36))
        else:
            pen.ellipse(box, fill=(*fill, 255), outline=line, width=width)
    else:
        turn = dice.uniform(-0.16, 0.16)
        corners = [
            (
                middle + r * (x * math.cos(turn) - y * math.sin(turn)),
                middle + r * (x * math.sin(turn) + y * math.cos(turn)),
            )
            for x, y in _outline(thing.shape)
        ]
        pen.polygon(corners, fill=(*fill, 255), outline=line, width=width)
    layer = layer.resize((side // _FINE, side // _FINE), Image.Resampling.LANCZOS)
    image.paste(layer, (round(thing.x * SIDE - layer.width / 2), round(thing.y * SIDE - layer.height / 2)), layer)


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        return [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)]
    if shape == "triangle":
        return [(0, -1), (0.93, 0.75), (-0.93, 0.75)]
    if shape == "diamond":
        return [(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)]
    if shape == "star":
        points = [(math.pi * i / 5 - math.pi / 2, 1.08 if i % 2 == 0 else 0.44) for i in range(10)]
        return [(length * math.cos(angle), length * math.sin(angle)) for angle, length in points]
    if shape == "cross":
        near, far = 0.32, 0.95
        quarter = [(-near, -far), (near, -far), (near, -near), (far, -near), (far, near), (near, near)]
        return [*quarter, (near, far), (-near, far), (-near, near), (-far, near), (-far, -near), (-near, -near)]
    turns = [2 * math.pi * i / 60 for i in range(60)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15,
        )
        for t in turns
    ]
