"""Chats for practice: more of what stays unsure, "yes" and "no" evenly, and "no" where it is near."""

from __future__ import annotations

import random
from collections.abc import Mapping

from llava_core.builtin.columns import COUNTS
from llava_core.builtin.data import talk
from llava_core.builtin.data.drawing import Drawn
from llava_core.builtin.data.scenes import DRAWN_SHAPES
from llava_core.builtin.data.talk import Ask

WEIGHTS: Mapping[str, float] = {
    "position": 3.0, "relation": 2.0, "count": 2.0, "yes/no": 2.0, "color": 1.5, "shape": 0.6, "at place": 0.4,
}  # fmt: skip
"""How often each kind of question about a scene is asked, against the others."""
_REFERENCES = 0.35


def drill(drawn: Drawn, dice: random.Random, turns: int = 6) -> list[Ask]:
    """Questions about one picture, in turn."""
    if drawn.kind == "shapes":
        return _scene(drawn, dice, turns)
    if drawn.kind == "drawing" and drawn.name:
        named = talk.named(drawn, dice)
        others = talk.named_yes_no(drawn, dice)
        return [*others, *named] if dice.random() < 0.25 else [*named, *others]
    found = talk.asks(drawn, dice)
    first = [ask for ask in found if ask.skill in ("list", "reading", "lines")]
    return [*first, *(ask for ask in found if ask not in first)][: 4 if drawn.kind == "drawing" else 5]


def _scene(drawn: Drawn, dice: random.Random, turns: int) -> list[Ask]:
    led = talk.references(drawn, dice) if dice.random() < _REFERENCES else []
    pools: dict[str, list[Ask]] = {}
    made = [
        *talk.colours(drawn, dice), *talk.shapes(drawn, dice), *talk.places(drawn, dice), *talk.relations(drawn, dice),
        *_counts(drawn, dice), *_yes_no(drawn, dice), *talk.relations_yes_no(drawn, dice),
    ]  # fmt: skip
    for ask in made:
        if ask.question in {earlier.question for earlier in led}:
            continue
        pools.setdefault(ask.skill, []).append(ask)
    for pool in pools.values():
        dice.shuffle(pool)
    asked: list[Ask] = []
    while len(asked) < turns - len(led) and any(pools.values()):
        skills = [skill for skill in pools if pools[skill]]
        skill = dice.choices(skills, [WEIGHTS.get(skill, 0.3) for skill in skills])[0]
        asked.append(pools[skill].pop())
    return led + asked


def _counts(drawn: Drawn, dice: random.Random) -> list[Ask]:
    """Of everything, of each colour and of each shape."""
    things = drawn.things
    found = talk.counts(drawn, dice)[:1]
    for colour in sorted({thing.colour for thing in things}):
        many = sum(thing.colour == colour for thing in things)
        if many <= 5:
            answer = talk.number(many, f"{colour} shape")
            found.append(Ask("count", f"How many {colour} shapes are there?", answer, COUNTS[many]))
    for shape in sorted({thing.shape for thing in things} | {dice.choice(DRAWN_SHAPES)}):
        many = sum(thing.shape == shape for thing in things)
        plural = shape + ("es" if shape.endswith("s") else "s")
        if many <= 5:
            answer = talk.number(many, shape) if many else f"There are no {plural}."
            found.append(Ask("count", f"How many {plural} are there?", answer, COUNTS[many] if many else "no"))
    return found


def _yes_no(drawn: Drawn, dice: random.Random) -> list[Ask]:
    """Four, each with even chances; half of what is missing is of a colour and a shape that are both there, apart."""
    colours = sorted({thing.colour for thing in drawn.things})
    shapes = sorted({thing.shape for thing in drawn.things})
    present = {thing.words for thing in drawn.things}
    found: list[Ask] = []
    for what in ("both", "both", "shape", "colour"):
        yes = dice.random() < 0.5
        if what == "shape":
            shape = dice.choice(shapes if yes else [shape for shape in DRAWN_SHAPES if shape not in shapes])
            found.append(talk.is_there(shape, yes, dice))
        elif what == "colour":
            colour = dice.choice(colours if yes else [c for c in talk.PLAIN_COLOURS if c not in colours])
            answer = f"Yes, something is {colour}." if yes else f"No, nothing is {colour}."
            found.append(Ask("yes/no", f"Is anything {colour}?", answer, "yes" if yes else "no"))
        elif yes:
            found.append(talk.is_there(dice.choice(sorted(present)), True, dice))
        else:
            near = [f"{c} {s}" for c in colours for s in shapes if f"{c} {s}" not in present]
            half = [f"{c} {s}" for c in colours for s in DRAWN_SHAPES if f"{c} {s}" not in present]
            half += [f"{c} {s}" for c in talk.PLAIN_COLOURS for s in shapes if f"{c} {s}" not in present]
            found.append(talk.is_there(dice.choice(near if near and dice.random() < 0.5 else half), False, dice))
    return found
