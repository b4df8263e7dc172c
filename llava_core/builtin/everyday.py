"""What people call the classes of ImageNet: its sorrel is a horse, its espresso a cup of coffee."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from llava_core.builtin.anchors import class_names

GENERAL = frozenset(("bird", "bird of prey", "shorebird", "fish", "insect", "ape", "duck", "hen", "monkey"))
"""Names that also fit an animal of another name."""


@cache
def everyday_names() -> tuple[str, ...]:
    """The 1000 classes in their order, under names that take "a" or "an". Classes that people do not tell apart have
    one name; of those that `everyday.txt` leaves out, the class's own name is an everyday one."""
    classes = class_names()
    places = {name: place for place, name in enumerate(classes)}
    names = list(classes)
    for line in Path(__file__).with_name("everyday.txt").read_text("utf-8").splitlines():
        name, _, of = line.partition(": ")
        for part in of.split(", "):
            first, _, last = part.partition(" .. ")
            for place in range(places[first], places[last or first] + 1):
                names[place] = name
    return tuple(names)


def everyday(class_name: str) -> str:
    """What people call one class of ImageNet. Raises ValueError for what is none."""
    return everyday_names()[class_names().index(class_name)]
