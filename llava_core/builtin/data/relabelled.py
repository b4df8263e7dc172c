"""Photographs under other names: what the tower says of one is said of something else, and the answer names that.

The sharp photographs there are to learn from show birds. So the classes that the tower sees in one are moved on
together by a random number of places: ImageNet lists what is alike side by side, and a goose beside a swan becomes one
tool beside another. What is learned is to take the tower's word for any of the thousand classes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_core.builtin.anchors import class_names
from llava_core.builtin.columns import KINDS, Columns
from llava_core.builtin.data.real_photos import RealPhotos
from llava_core.builtin.data.talk import Ask, a, is_there

_ANIMALS = 398
"""ImageNet's classes before this one are animals; none after it is."""
_NEAR = 8
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
    names = class_names()
    name = names[label]
    answers = (f"This is a photo of {a(name)}.", f"This is a photo of {a(name)}.", f"The photo shows {a(name)}.")
    naming = Ask("real photo", dice.choice(_QUESTIONS), dice.choice(answers), name)
    if dice.random() < 0.25:
        animal = label < _ANIMALS
        answer = f"Yes, there is {a(name)}." if animal else f"No, it shows {a(name)}."
        other = Ask("yes/no", "Is there an animal?", answer, "yes" if animal else "no")
    else:
        step = dice.choice((-1, 1)) * dice.randint(1, _NEAR) if dice.random() < 0.3 else dice.randrange(1, len(names))
        missing = names[(label + step) % len(names)]
        # Two classes have the same name.
        yes = dice.random() < 0.5 or missing == name
        other = is_there(name if yes else missing, yes, dice)
    return dice.choices(([naming], [naming, other], [other]), (0.55, 0.25, 0.2))[0]


def write_relabelled(
    photos: RealPhotos, folder: Path, model: Path, cache: Path, *, many: int, seed: int
) -> list[dict[str, Any]]:
    """Samples about `many` of them, each with a file of its own in `folder/pictures`. What the tower of `model` is made
    to say about it lies in `cache`, where training looks."""
    from llava_core.builtin.data.samples import record
    from llava_core.train.encode import encode, tower_of
    from llava_core.train.feature_cache import Features

    place = folder / "pictures"
    place.mkdir(parents=True, exist_ok=True)
    tower, side, kept = tower_of(model, cache)
    columns = Columns(tower.config.vision_config.names)
    tables: dict[str, Features] = {}
    records: list[dict[str, Any]] = []
    features: list[tuple[str, Features]] = []
    for index in range(many):
        what = relabelled(photos, index, seed)
        dice = random.Random(f"{seed}/moved/{index}")
        path = place / f"relabelled-{seed}-{index}.jpg"
        # The comment makes it a picture of its own.
        photos.picture(what.name).save(path, quality=92, comment=f"{seed}/{index}".encode())
        if what.name not in tables:
            pixels, (height, width), _ = side.prepare(path)
            with torch.inference_mode():
                [rows] = encode(tower, [pixels])
            tables[what.name] = Features(rows, (width, height))
        seen = tables[what.name]
        table = moved(seen.rows[0], what, columns, dice)
        features.append((kept.key_of(path), Features(table[None], seen.size)))
        asked = asks(int(table[0, columns.place("class")].argmax()), dice)
        turns = [(ask.question, ask.answer) for ask in asked]
        records.append(record(f"relabelled-{index}", f"pictures/{path.name}", turns))
    kept.remember()
    with kept.writer() as writer:
        writer.add(features)
    return records
