"""The held-out questions about pictures: some per skill, each with a picture of its own, the same for every run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from PIL import Image

from llava_core.builtin.data.sources import Pictures
from llava_core.builtin.data.talk import asks, described, references

SEED = 20_260
"""Training counts its seeds from 1; words, icons and photographs are split besides."""
SKILLS: Mapping[str, tuple[str, str]] = {
    "color": ("shapes", "colour of a drawn shape"),
    "shape": ("shapes", "shape of what is coloured"),
    "count": ("shapes", "count to five"),
    "position": ("shapes", "place in the picture, one of nine"),
    "relation": ("shapes", "what is beside it"),
    "yes/no": ("shapes", "yes or no, chance is 50 %"),
    "reference": ("shapes", 'third of three turns, as "and the one left of it?"'),
    "reading": ("text", "a word of up to eight letters, exact"),
    "chart": ("chart", "a value read off a bar chart"),
    "icon": ("icon", "name of an unseen drawing, of 814"),
    "photo": ("photo", "class of a CIFAR-10 test photograph, of ten"),
    "photo yes/no": ("photo", "yes or no about a photograph"),
    "large photo": ("large photo", "the tower's own word for a photograph of COCO"),
    "describe": ("shapes", "all shapes of a picture named in one answer"),
}
"""The kind of picture each skill is asked about, and what it is in words."""
AIMS: Mapping[str, int] = {
    "color": 90,
    "shape": 90,
    "count": 70,
    "position": 85,
    "yes/no": 85,
    "reference": 75,
    "reading": 60,
    "photo": 70,
}
"""Per cent that the built-in model is meant to reach at least, where that was laid down."""


@dataclass(frozen=True)
class Question:
    """Turns to ask in order; the last answer, of up to `most` tokens, counts, and is right when it holds `key`."""

    skill: str
    image: Image.Image
    turns: tuple[str, ...]
    key: str
    most: int = 24


def held_out(sources: Pictures, per_skill: int, skills: Iterable[str] = tuple(SKILLS)) -> list[Question]:
    """The same for the same sources: nothing here is left to chance."""
    assert sources.tested
    return [question for skill in skills for question in _of_skill(sources, skill, per_skill)]


def is_right(skill: str, answer: str, key: str) -> bool:
    """Whether an answer holds the key, as whole words; letters count as the word they spell. Of a description the key
    is all that it must name, apart by "|": things that are there twice, twice."""
    if skill == "describe":
        parts = Counter(tuple(_words(part)) for part in key.split("|"))
        return all(_times(_words(answer), part) >= many for part, many in parts.items())
    if skill == "reading":
        return _letters(key) == _letters(answer.partition('"')[2].partition('"')[0] or answer)
    said = _words(answer)
    if "yes/no" in skill:
        return said[:1] == [key]
    return _times(said, tuple(_words(key))) > 0


def _of_skill(sources: Pictures, skill: str, many: int) -> list[Question]:
    kind = SKILLS[skill][0]
    found: list[Question] = []
    given: Counter[str] = Counter()
    files: set[str] = set()
    for attempt in range(many * 60):
        if len(found) == many:
            break
        dice = random.Random(f"{SEED}/{skill}/{attempt}")
        drawn = sources.draw(kind, dice)
        file = drawn.facts.get("file", "")
        if file and file in files:  # there are few of these
            continue
        files.add(file)
        if skill == "reference":
            led = references(drawn, dice)
            if led:
                found.append(Question(skill, drawn.image, tuple(ask.question for ask in led), led[-1].key))
            continue
        if skill == "describe":
            found += [Question(skill, drawn.image, (ask.question,), ask.key, 96) for ask in described(drawn, dice)]
            continue
        of_skill = [ask for ask in asks(drawn, dice) if ask.skill == skill.removeprefix("photo ")]
        for ask in of_skill[:1]:
            # "yes" and "no" in equal parts, whatever the dice say.
            if "yes/no" in skill and given[ask.key] >= (many + 1) // 2:
                continue
            given[ask.key] += 1
            found.append(Question(skill, drawn.image, (ask.question,), ask.key))
    return found


def _times(said: list[str], wanted: tuple[str, ...]) -> int:
    return sum(tuple(said[at : at + len(wanted)]) == wanted for at in range(len(said) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def _letters(text: str) -> str:
    return "".join(letter for letter in text.upper() if letter.isalnum())
