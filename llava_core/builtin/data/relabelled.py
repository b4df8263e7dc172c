"""Photographs under other names: what the tower says of one is said of something else, and the answer names that.

The sharp photographs there are to learn from show birds. So the classes that the tower sees in one are moved on
together by a random number of places: ImageNet lists what is alike side by side, and a goose beside a swan becomes one
tool beside another. Regions may be moved on by themselves, for what else lies around in a picture. What is learned is
to take the tower's word for any of the thousand classes, under the name that people have for it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from llava_core.builtin.columns import KINDS, REGIONS, Columns
from llava_core.builtin.data.real_photos import RealPhotos
from llava_core.builtin.data.samples import record
from llava_core.builtin.data.talk import Ask, a, is_there
from llava_core.builtin.everyday import GENERAL, everyday_names
from llava_core.train.dataset import PictureSide
from llava_core.train.encode import encode, tower_of
from llava_core.train.feature_cache import Features

_ANIMALS = 398
"""ImageNet's classes before this one are animals; none after it is."""
_NEAR = 8
_LITTERED = 0.4
"""Part of the pictures that show other things too, in half of their regions."""
_QUESTIONS = (
    "What is in this picture?", "What is in the picture?", "What does this picture show?", "What is in this photo?",
    "What is this?", "What do you see?", "Describe the photo.", "Describe this picture.", "What does the photo show?",
)  # fmt: skip


@dataclass(frozen=True)
class Relabelled:
    """A photograph, the places its classes are moved on by, and how sure the tower shall seem: that it is a photograph,
    and of what."""

    name: str
    step: int
    photo: float
    sure: float


def relabelled(photos: RealPhotos, index: int, seed: int) -> Relabelled:
    """Half of them are as plainly photographs as birds are to the tower, seven in ten as sure of their class."""
    dice = random.Random(f"{seed}/relabelled/{index}")
    photo = 1.0 if dice.random() < 0.5 else dice.uniform(0.4, 1)
    sure = 1.0 if dice.random() < 0.7 else dice.uniform(0.4, 1)
    return Relabelled(dice.choice(photos.names), dice.randrange(Columns.CLASSES), photo, sure)


def moved(table: torch.Tensor, what: Relabelled, columns: Columns, dice: random.Random) -> torch.Tensor:
    """The table of a photograph, (36, columns), as the tower would fill it in for something else."""
    table = table.clone()
    classes, kinds, names, small = (columns.place(group) for group in ("class", "kind", "name", "small photo"))
    table[:, classes] = table[:, classes].roll(what.step, -1) * what.photo * what.sure
    if dice.random() < _LITTERED:
        for region in table[2 : 2 + REGIONS, classes]:
            if dice.random() < 0.5:
                region.copy_(region.roll(dice.randrange(Columns.CLASSES)))
    rest = 1 - what.photo
    if rest:
        drawing = rest * dice.random()
        table[0, kinds] *= what.photo
        table[0, kinds.start + KINDS.index("drawing")] += drawing
        table[0, kinds.start + KINDS.index("small photo")] += rest - drawing
        # What it would be called if it were a drawing, or a small photograph.
        table[0, names.start + dice.randrange(columns.names)] += drawing
        table[0, small.start + dice.randrange(Columns.SMALL_PHOTO)] += rest - drawing
    return table


def asks(label: int, dice: random.Random) -> list[Ask]:
    """One or two questions about a photograph of this class: what it shows, and whether it shows something."""
    names = everyday_names()
    name, animal = names[label], label < _ANIMALS
    answers = (f"This is a photo of {a(name)}.", f"This is a photo of {a(name)}.", f"The photo shows {a(name)}.")
    naming = Ask("large photo", dice.choice(_QUESTIONS), dice.choice(answers), name)
    if dice.random() < 0.25:
        answer = f"Yes, there is {a(name)}." if animal else f"No, it shows {a(name)}."
        other = Ask("yes/no", "Is there an animal?", answer, "yes" if animal else "no")
    else:
        step = dice.choice((-1, 1)) * dice.randint(1, _NEAR) if dice.random() < 0.3 else dice.randrange(1, len(names))
        missing = names[(label + step) % len(names)]
        yes = dice.random() < 0.5 or missing == name or (animal and missing in GENERAL)
        other = is_there(name if yes else missing, yes, dice)
    return dice.choices(([naming], [naming, other], [other]), (0.6, 0.2, 0.2))[0]


def write_relabelled(
    photos: RealPhotos, folder: Path, model: Path, cache: Path, *, many: int, seed: int
) -> list[dict[str, Any]]:
    """Samples about `many` of them, each with a file of its own in `folder/pictures`. What the tower of `model` is made
    to say about it lies in `cache`, where training looks."""
    place = folder / "pictures"
    place.mkdir(parents=True, exist_ok=True)
    tower, side, kept = tower_of(model, cache)
    columns = Columns(tower.config.vision_config.names)
    records: list[dict[str, Any]] = []
    features: list[tuple[str, Features]] = []
    wanted = sorted(((relabelled(photos, index, seed), index) for index in range(many)), key=lambda one: one[0].name)
    for name, some in groupby(wanted, key=lambda one: one[0].name):
        picture, seen = photos.picture(name), None
        for what, index in some:
            dice = random.Random(f"{seed}/moved/{index}")
            path = place / f"relabelled-{seed}-{index}.jpg"
            # The comment makes it a picture of its own.
            picture.save(path, quality=92, comment=f"{seed}/{index}".encode())
            seen = seen or _seen(tower, side, path)
            table = moved(seen.rows[0], what, columns, dice)
            features.append((kept.key_of(path), Features(table[None], seen.size)))
            asked = asks(int(table[0, columns.place("class")].argmax()), dice)
            turns = [(ask.question, ask.answer) for ask in asked]
            records.append(record(f"relabelled-{index}", f"pictures/{path.name}", turns))
    kept.remember()
    with kept.writer() as writer:
        writer.add(features)
    return records


def _seen(tower: Any, side: PictureSide, path: Path) -> Features:
    pixels, (height, width), _ = side.prepare(path)
    with torch.inference_mode():
        [rows] = encode(tower, [pixels])
    return Features(rows, (width, height))
