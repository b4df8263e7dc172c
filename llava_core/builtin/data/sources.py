"""Where pictures come from: the packages with icons and photographs, and words out of a tokenizer's vocabulary."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from PIL import Image

from llava_core.builtin.data.charts import draw_chart
from llava_core.builtin.data.drawing import SIDE, Drawn
from llava_core.builtin.data.icons import Icon, IconSets, split
from llava_core.builtin.data.photos import SmallPhotos
from llava_core.builtin.data.real_photos import RealPhotos
from llava_core.builtin.data.scenes import draw_icons, draw_scene
from llava_core.builtin.data.texts import draw_text
from llava_core.builtin.everyday import everyday

_WORD = re.compile(r"[a-z]{3,8}")
_TESTED_WORDS = 0.2


class Pictures(Protocol):
    """What draws: pictures of a kind, each with the truth about it."""

    @property
    def tested(self) -> bool: ...

    def draw(self, what: str, dice: random.Random) -> Drawn: ...


@dataclass(frozen=True)
class OneShape:
    """A shape on a ground, and nothing that must be fetched: all that the smallest rebuild looks at."""

    tested: bool = False

    def draw(self, what: str, dice: random.Random) -> Drawn:
        del what
        return draw_scene(dice, most=1)


@dataclass
class Sources:
    """Everything that pictures are made of. `tested` takes the part that is kept for tests."""

    icon_sets: IconSets
    small_photos: SmallPhotos
    vocabulary: tuple[str, ...]
    real_photos: RealPhotos
    tested: bool = False
    large_photos: RealPhotos | None = None
    """Only to be asked about."""

    @cached_property
    def icons(self) -> list[Icon]:
        return split(self.icon_sets.icons, tested=self.tested)

    @cached_property
    def words(self) -> list[str]:
        """Lower-case words of three to eight letters; a fifth of them, by their spelling alone, are for tests."""
        words = sorted({word for word in self.vocabulary if _WORD.fullmatch(word)})
        dice = random.Random(7)
        tested = {word for word in words if dice.random() < _TESTED_WORDS}
        return [word for word in words if (word in tested) is self.tested]

    @cached_property
    def _photos(self) -> tuple[np.ndarray, list[str]]:
        batch = None if self.tested else 0
        return self.small_photos.sprites(batch), self.small_photos.labels(batch)

    def photo(self, dice: random.Random) -> Drawn:
        """A small photograph as large as the other pictures."""
        pixels, labels = self._photos
        index = dice.randrange(len(labels))
        image = Image.fromarray(pixels[index])
        if dice.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return Drawn(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), "small photo", name=labels[index])

    def draw(self, what: str, dice: random.Random) -> Drawn:
        """A picture of a kind: shapes, photo shapes, text, photo text, chart, icon, icons, photo, real photo, large
        photo."""
        behind = self.photo(dice).image if what.startswith("photo ") else None
        if what.endswith("shapes"):
            return draw_scene(dice, behind)
        if what.endswith("text"):
            return draw_text(dice, self._words_to_read(dice), behind)
        if what == "chart":
            return draw_chart(dice)
        if what.endswith(("icon", "icons")):
            many = dice.randint(2, 3) if what.endswith("icons") else 1
            some = [(icon.name, self.icon_sets.picture(icon)) for icon in dice.sample(self.icons, many)]
            others = [icon.name for icon in dice.sample(self.icons, 4)]
            drawn = draw_icons(dice, some, behind, shapes=many > 1 and dice.random() < 0.3)
            return replace(drawn, facts={"other names": "|".join(others)})
        photos = {"real photo": self.real_photos, "large photo": self.large_photos}.get(what)
        if photos:
            name = dice.choice(photos.names)
            return Drawn(photos.picture(name), "photo", name=everyday(photos.labels[name]), facts={"file": name})
        return self.photo(dice)

    def _words_to_read(self, dice: random.Random) -> list[str]:
        found: list[str] = []
        for _ in range(2 if dice.random() < 0.15 else 1):
            roll = dice.random()
            if roll < 0.6:
                word = dice.choice(self.words)
            elif roll < 0.85:
                word = "".join(dice.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(dice.randint(2, 8)))
            else:
                word = "".join(dice.choice("0123456789") for _ in range(dice.randint(1, 6)))
            found.append(dice.choice((word, word.upper(), word.upper(), word.capitalize())))
        return found
