"""Words and numbers to read, in many faces, sizes and colours, with the place of every letter."""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from llava_core.builtin.data.drawing import SIDE, Drawn, Letter, Rgb, background, shade

_FACES = [
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono.ttf",
    "LiberationSans-Regular.ttf",
    "LiberationSans-Bold.ttf",
    "LiberationSerif-Regular.ttf",
    "LiberationSerif-Bold.ttf",
    "LiberationMono-Bold.ttf",
    "LiberationSans-Italic.ttf",
    "DejaVuSans-Oblique.ttf",
]


def draw_text(dice: random.Random, words: list[str], photo: Image.Image | None = None) -> Drawn:
    """Each word on a line of its own, as large as fits or smaller."""
    image, _ = background(dice, photo)
    pen = ImageDraw.Draw(image)
    face = dice.choice(faces())
    spacing = dice.uniform(0.0, 0.18)
    sizes = [_largest(face, word, spacing, SIDE * 0.9) for word in words]
    size = min(*sizes, 0.62 * SIDE / len(words), 72)
    size = max(size * dice.uniform(0.72, 1.0), min(size, 30))
    ink = _readable(image, dice)
    letters: list[Letter] = []
    free = SIDE - len(words) * size * 1.35
    top = dice.uniform(0.05, 0.95) * max(free, 0)
    font = _font(face, round(size))
    for line, word in enumerate(words):
        wide = _width(font, word, spacing)
        x = dice.uniform(0.04 * SIDE, max(SIDE * 0.96 - wide, 0.04 * SIDE + 1))
        y = top + (line + 0.55) * size * 1.35
        letters += put_word(pen, font, word, x, y, ink, spacing)
    return Drawn(image, "text", letters=tuple(letters), words=tuple(words))


def put_word(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, word: str, x: float, y: float, ink: Rgb, spacing: float = 0
) -> list[Letter]:
    """Write a word from `x` on, its middle at height `y`, and say where each letter came to stand."""
    letters: list[Letter] = []
    for letter in word:
        wide = font.getlength(letter)
        pen.text((x, y), letter, font=font, fill=ink, anchor="lm")
        letters.append(Letter(letter.upper(), (x + wide / 2) / SIDE, y / SIDE))
        x += wide + spacing * font.size
    return letters


@cache
def faces() -> tuple[str, ...]:
    """The faces that this machine has; "" is the one Pillow carries."""
    found = [""]
    for face in _FACES:
        try:
            ImageFont.truetype(face, 20)
        except OSError:
            continue
        found.append(face)
    return tuple(found)


def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    found = ImageFont.truetype(face, size) if face else ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found


font_of = cache(_font)


def _width(font: ImageFont.FreeTypeFont, word: str, spacing: float) -> float:
    return sum(font.getlength(letter) for letter in word) + spacing * font.size * (len(word) - 1)


def _largest(face: str, word: str, spacing: float, wide: float) -> float:
    return wide / _width(font_of(face, 100), word, spacing) * 100


def _readable(image: Image.Image, dice: random.Random) -> Rgb:
    """Ink that stands out from what is behind it."""
    small = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(small, tuple)
    light = sum(small) / 3
    dark_inks = ("black", "black", "black", "blue", "red", "purple", "brown", "green")
    return shade(dice.choice(dark_inks if light > 120 else ("white", "white", "yellow", "pink")), dice)
