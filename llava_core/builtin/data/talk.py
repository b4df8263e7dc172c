"""What can be asked of a drawn picture, with the answer that its truth gives: questions by skill, and whole chats."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from llava_core.builtin.columns import COUNTS, ROWS, SIDES, SMALL_PHOTOS
from llava_core.builtin.data.drawing import Drawn, Thing
from llava_core.builtin.data.scenes import DRAWN_SHAPES

PLAIN_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray")
_ANIMALS = frozenset(("bird", "cat", "deer", "dog", "frog", "horse"))


@dataclass(frozen=True)
class Ask:
    """A question, its answer in a sentence, and the word that a right answer holds."""

    skill: str
    question: str
    answer: str
    key: str


def a(words: str) -> str:
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def place_of(thing: Thing) -> tuple[str, str]:
    """Row and side of a thing."""
    return ROWS[min(int(thing.y * 3), 2)], SIDES[min(int(thing.x * 3), 2)]


def place_words(thing: Thing) -> str:
    row, side = place_of(thing)
    if (row, side) == ("middle", "center"):
        return "the center"
    return f"the {row} {side}"


def caption(drawn: Drawn, dice: random.Random) -> str:
    """One sentence or a few that say everything, for alignment."""
    if drawn.kind == "text":
        lines = " and ".join(f'"{_spelled(word)}"' for word in drawn.words)
        return f"A picture of text. It says {lines}."
    if drawn.kind in ("photo", "small photo"):
        return f"A photo of {a(drawn.name)}."
    if drawn.kind == "chart":
        bars = ", ".join(f"{bar.label} is {bar.colour} with {bar.value}" for bar in drawn.things)
        return f"A bar chart with {COUNTS[len(drawn.things)]} bars: {bars}."
    if drawn.name:
        return f"A drawing of {a(drawn.name)}."
    many = len(drawn.things)
    what = "shape" if drawn.kind == "shapes" else "thing"
    listed = ", ".join(f"{a(_described(thing))} at {place_words(thing)}" for thing in drawn.things)
    return f"{COUNTS[many].capitalize()} {what}{'s' * (many > 1)}: {listed}."


_DESCRIBE = (
    "What is in this picture?", "What is in the picture?", "Describe this picture.", "Describe the picture.",
    "Describe this image.", "What do you see?", "What does this picture show?", "What is this?", "What is shown here?",
)  # fmt: skip


def described(drawn: Drawn, dice: random.Random) -> list[Ask]:
    """What people ask first, answered with all there is to say: of shapes, text and charts. `key` holds what a whole
    answer names, apart by "|"."""
    if drawn.kind == "text":
        lines = [f'"{_spelled(word)}"' for word in drawn.words]
        answer, parts = f"This is a picture of text. It says {' and below it '.join(lines)}.", drawn.words
    elif drawn.kind == "chart":
        listed = [f"bar {bar.label} is {bar.colour} with {bar.value}" for bar in drawn.things]
        answer = f"This is a bar chart with {COUNTS[len(listed)]} bars: {_listed(listed)}."
        parts = tuple(listed)
    elif drawn.kind == "shapes":
        listed = [f"{a(thing.words)} at {place_words(thing)}" for thing in drawn.things]
        answer = f"{number(len(listed), 'shape')[:-1]}: {_listed(listed)}."
        parts = tuple(thing.words for thing in drawn.things)
    else:
        return []
    return [Ask("describe", dice.choice(_DESCRIBE), answer, "|".join(parts))]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def asks(drawn: Drawn, dice: random.Random) -> list[Ask]:
    """All questions that suit a picture, in any order; yes and no in equal parts."""
    makers: dict[str, tuple[Callable[[Drawn, random.Random], list[Ask]], ...]] = {
        "shapes": (colours, shapes, counts, places, relations, _yes_no, relations_yes_no),
        "drawing": (named, places, relations, named_yes_no, counts),
        "text": (_reading, _text_yes_no),
        "chart": (_chart,),
        "small photo": (_photo,),
        "photo": (_real_photo,),
    }
    found = [ask for maker in makers[drawn.kind] for ask in maker(drawn, dice)]
    dice.shuffle(found)
    return found


def references(drawn: Drawn, dice: random.Random) -> list[Ask]:
    """Three questions of which each leans on the answer before it, where the picture has enough in it."""
    things = [thing for thing in drawn.things if thing.shape != "bar"]
    unique = [thing for thing in things if [other.words for other in things].count(thing.words) == 1]
    pairs = [
        (things[i], things[i + step], step)
        for i in range(len(things))
        for step in (-1, 1)
        if 0 <= i + step < len(things) and things[i] in unique
    ]
    if not pairs:
        return []
    first, second, step = dice.choice(pairs)
    side = "left" if step < 0 else "right"
    asked = [
        Ask("position", f"Where is the {first.words}?", _is_at(first), place_words(first)),
        Ask(
            "reference",
            dice.choice(
                (f"And the one {side} of it?", f"What is {side} of it?", f"And what is next to it on the {side}?")
            ),
            f"{_to_side(side)} it is {a(second.words)}.".capitalize(),
            second.words,
        ),
    ]
    if second.colour and dice.random() < 0.5:
        asked.append(
            Ask("reference", "What color is that one?", f"The {second.shape} is {second.colour}.", second.colour)
        )
    else:
        asked.append(Ask("reference", "Where is that one?", _is_at(second), place_words(second)))
    return asked


def _is_at(thing: Thing) -> str:
    return f"The {thing.words} is at {place_words(thing)}."


def _to_side(side: str) -> str:
    return f"{side} of"


def _described(thing: Thing) -> str:
    return f"{thing.size} {thing.words}".strip()


def _spelled(word: str) -> str:
    """Letters apart: a tokenizer's pieces hide how a word is written."""
    return " ".join(word.upper())


def number(many: int, what: str) -> str:
    plural = what + ("es" if what.endswith("s") and many != 1 else "s" if many != 1 else "")
    return f"There {'is' if many == 1 else 'are'} {COUNTS[many]} {plural}."


def _once(drawn: Drawn, part: Callable[[Thing], str]) -> list[Thing]:
    times = Counter(part(thing) for thing in drawn.things)
    return [thing for thing in drawn.things if part(thing) and times[part(thing)] == 1]


def colours(drawn: Drawn, dice: random.Random) -> list[Ask]:
    found: list[Ask] = []
    for thing in _once(drawn, lambda thing: thing.shape):
        question = dice.choice((f"What color is the {thing.shape}?", f"Which color does the {thing.shape} have?"))
        found.append(Ask("color", question, f"The {thing.shape} is {thing.colour}.", thing.colour))
    if len(drawn.things) == 1:
        found.append(
            Ask("color", "What color is the shape?", f"It is {drawn.things[0].colour}.", drawn.things[0].colour)
        )
    return found


def shapes(drawn: Drawn, dice: random.Random) -> list[Ask]:
    found: list[Ask] = []
    for thing in _once(drawn, lambda thing: thing.colour):
        question = dice.choice((f"What shape is {thing.colour}?", f"What is the shape of the {thing.colour} thing?"))
        found.append(Ask("shape", question, f"The {thing.colour} shape is {a(thing.shape)}.", thing.shape))
    if len(drawn.things) == 1:
        shape = drawn.things[0].shape
        found.append(Ask("shape", "What shape is in the picture?", f"It is {a(shape)}.", shape))
    return found


def counts(drawn: Drawn, dice: random.Random) -> list[Ask]:
    things = drawn.things
    if len(things) > 5 or (drawn.kind == "drawing" and len(things) < 2):
        return []
    what = "shape" if drawn.kind == "shapes" else "thing"
    question = dice.choice((f"How many {what}s are there?", f"How many {what}s do you see?", f"Count the {what}s."))
    found = [Ask("count", question, number(len(things), what), COUNTS[len(things)])]
    if drawn.kind == "shapes":
        shape = dice.choice(things).shape if dice.random() < 0.85 else dice.choice(DRAWN_SHAPES)
        many = sum(thing.shape == shape for thing in things)
        plural = shape + ("es" if shape.endswith("s") else "s")
        answer = number(many, shape) if many else f"There are no {plural}."
        found.append(Ask("count", f"How many {plural} are there?", answer, COUNTS[many] if many else "no"))
        colour = dice.choice(things).colour
        many = sum(thing.colour == colour for thing in things)
        found.append(
            Ask("count", f"How many {colour} shapes are there?", number(many, f"{colour} shape"), COUNTS[many])
        )
    return found


def places(drawn: Drawn, dice: random.Random) -> list[Ask]:
    found: list[Ask] = []
    for thing in _once(drawn, lambda thing: thing.words):
        words = place_words(thing)
        found.append(Ask("position", f"Where is the {thing.words}?", f"The {thing.words} is at {words}.", words))
    for words in sorted({place_words(thing) for thing in drawn.things}):
        there = [thing for thing in drawn.things if place_words(thing) == words]
        if len(there) == 1 and len(drawn.things) > 1:
            answer = f"At {words} is {a(there[0].words)}."
            found.append(Ask("at place", f"What is at {words}?", answer, there[0].words))
    return found


def relations(drawn: Drawn, dice: random.Random) -> list[Ask]:
    found: list[Ask] = []
    things = drawn.things
    known = _once(drawn, lambda thing: thing.words)
    for index, thing in enumerate(things):
        if thing not in known:
            continue
        for side, other in (("left", index - 1), ("right", index + 1)):
            question = f"What is {side} of the {thing.words}?"
            if 0 <= other < len(things):
                answer = f"{side.capitalize()} of the {thing.words} is {a(things[other].words)}."
                found.append(Ask("relation", question, answer, things[other].words))
            elif dice.random() < 0.3:
                answer = f"There is nothing {side} of the {thing.words}."
                found.append(Ask("relation", question, answer, "nothing"))
    if len(things) > 1:
        end = dice.choice((0, -1))
        words = "leftmost" if end == 0 else "rightmost"
        answer = f"The {words} one is {a(things[end].words)}."
        found.append(Ask("relation", f"Which one is {words}?", answer, things[end].words))
    return found


def _yes_no(drawn: Drawn, dice: random.Random) -> list[Ask]:
    found: list[Ask] = []
    present = {thing.words for thing in drawn.things}
    for _ in range(2):
        yes = dice.random() < 0.5
        thing = dice.choice(drawn.things)
        if yes:
            words = thing.words
        else:
            # Half of what is missing differs in one respect only.
            colour, shape = thing.colour, thing.shape
            if dice.random() < 0.5:
                colour = dice.choice(PLAIN_COLOURS)
            else:
                shape = dice.choice(DRAWN_SHAPES)
            words = f"{colour} {shape}"
            if words in present:
                continue
        found.append(is_there(words, yes, dice))
    shapes = {thing.shape for thing in drawn.things}
    yes = dice.random() < 0.5
    shape = dice.choice(sorted(shapes)) if yes else dice.choice([s for s in DRAWN_SHAPES if s not in shapes])
    found.append(is_there(shape, yes, dice))
    colours = {thing.colour for thing in drawn.things}
    yes = dice.random() < 0.5
    colour = dice.choice(sorted(colours)) if yes else dice.choice([c for c in PLAIN_COLOURS if c not in colours])
    answer = f"Yes, something is {colour}." if yes else f"No, nothing is {colour}."
    found.append(Ask("yes/no", f"Is anything {colour}?", answer, "yes" if yes else "no"))
    if len(drawn.things) == 1 and not yes:
        words = f"The picture does not show {a('cat')}, only {a(drawn.things[0].words)}."
        found.append(Ask("refusal", "What is the cat doing?", f"There is no cat. {words}", "no cat"))
    return found


def is_there(words: str, yes: bool, dice: random.Random) -> Ask:
    question = dice.choice((f"Is there {a(words)}?", f"Do you see {a(words)}?", f"Is there {a(words)} in the picture?"))
    answer = f"Yes, there is {a(words)}." if yes else f"No, there is no {words}."
    return Ask("yes/no", question, answer, "yes" if yes else "no")


def relations_yes_no(drawn: Drawn, dice: random.Random) -> list[Ask]:
    known = _once(drawn, lambda thing: thing.words)
    if len(known) < 2:
        return []
    first, second = dice.sample(known, 2)
    across = dice.random() < 0.5
    if abs((first.x - second.x) if across else (first.y - second.y)) < 0.12:
        return []
    before = first.x < second.x if across else first.y < second.y
    word = dice.choice(("left of", "right of") if across else ("above", "below"))
    yes = before == (word in ("left of", "above"))
    words = f"the {first.words} is {'' if yes else 'not '}{word} the {second.words}"
    answer = f"{'Yes' if yes else 'No'}, {words}."
    question = f"Is the {first.words} {word} the {second.words}?"
    return [Ask("yes/no", question, answer, "yes" if yes else "no")]


def named(drawn: Drawn, dice: random.Random) -> list[Ask]:
    if not drawn.name:
        listed = [a(thing.words) for thing in drawn.things]
        return [Ask("list", "What do you see, from left to right?", f"I see {_listed(listed)}.", listed[0])]
    question = dice.choice(
        ("What is this?", "What is in the picture?", "What does this picture show?", "What do you see?")
    )
    answer = dice.choice((f"This is a drawing of {a(drawn.name)}.", f"It shows {a(drawn.name)}."))
    return [Ask("icon", question, answer, drawn.name)]


def named_yes_no(drawn: Drawn, dice: random.Random) -> list[Ask]:
    others = drawn.facts.get("other names", "").split("|")
    yes = dice.random() < 0.5
    there = [thing.name for thing in drawn.things if thing.name]
    if not there or (not yes and not others[0]):
        return []
    words = dice.choice(there) if yes else dice.choice(others)
    return [] if not yes and words in there else [is_there(words, yes, dice)]


def _reading(drawn: Drawn, dice: random.Random) -> list[Ask]:
    if len(drawn.words) == 1:
        word = _spelled(drawn.words[0])
        question = dice.choice(
            ("What does it say?", "What is written here?", "Read the text.", "What word is in the picture?")
        )
        return [Ask("reading", question, f'It says "{word}".', word)]
    first, second = (_spelled(word) for word in drawn.words)
    return [
        Ask("lines", "What does it say?", f'It says "{first}" and below it "{second}".', first),
        Ask("lines", "What is on the first line?", f'On the first line it says "{first}".', first),
    ]


def _text_yes_no(drawn: Drawn, dice: random.Random) -> list[Ask]:
    yes = dice.random() < 0.5
    if yes:
        return [Ask("yes/no", "Is there any text?", "Yes, there is text.", "yes")]
    shape = dice.choice(DRAWN_SHAPES)
    return [is_there(shape, False, dice)]


def _chart(drawn: Drawn, dice: random.Random) -> list[Ask]:
    found: list[Ask] = []
    bars = drawn.things
    for bar in dice.sample(bars, 2):
        which = dice.choice((f"the {bar.colour} bar", f"bar {bar.label}"))
        answer = f"The value of {which} is {bar.value}."
        found.append(Ask("chart", f"What is the value of {which}?", answer, str(bar.value)))
    bar = dice.choice(bars)
    found.append(Ask("chart color", f"What color is bar {bar.label}?", f"Bar {bar.label} is {bar.colour}.", bar.colour))
    found.append(Ask("count", "How many bars are there?", number(len(bars), "bar"), COUNTS[len(bars)]))
    values = sorted(bar.value or 0 for bar in bars)
    if values[-1] > values[-2]:
        tallest = next(bar for bar in bars if bar.value == values[-1])
        answer = f"The tallest bar is {tallest.label}, which is {tallest.colour}, with {tallest.value}."
        found.append(Ask("chart", "Which bar is the tallest?", answer, f"{tallest.label},"))
    return found


def _photo(drawn: Drawn, dice: random.Random) -> list[Ask]:
    name = drawn.name
    question = dice.choice(
        ("What is in this photo?", "What is this?", "What does the photo show?", "Describe the photo.")
    )
    answer = dice.choice((f"This is a photo of {a(name)}.", f"The photo shows {a(name)}."))
    found = [Ask("photo", question, answer, name)]
    yes = dice.random() < 0.5
    words = name if yes else dice.choice([other for other in SMALL_PHOTOS if other != name])
    found.append(is_there(words, yes, dice))
    if dice.random() < 0.5:
        animal = name in _ANIMALS
        answer = f"Yes, there is {a(name)}." if animal else f"No, it shows {a(name)}."
        found.append(Ask("yes/no", "Is there an animal?", answer, "yes" if animal else "no"))
    else:
        vehicle = name not in _ANIMALS
        answer = f"Yes, there is {a(name)}." if vehicle else f"No, it shows {a(name)}."
        found.append(Ask("yes/no", "Is there a vehicle?", answer, "yes" if vehicle else "no"))
    return found


def _real_photo(drawn: Drawn, dice: random.Random) -> list[Ask]:
    question = dice.choice(
        (
            "What is in this photo?",
            "What is this?",
            "What do you see?",
            "Describe the photo.",
            "What does the photo show?",
        )
    )
    answer = dice.choice((f"This is a photo of {a(drawn.name)}.", f"The photo shows {a(drawn.name)}."))
    found = [Ask("large photo", question, answer, drawn.name)]
    if dice.random() < 0.5:
        found.append(Ask("yes/no", "Is there an animal?", f"Yes, there is {a(drawn.name)}.", "yes"))
        found.append(is_there(dice.choice(("car", "ship", "house", "computer", "chair")), False, dice))
    else:
        found.append(Ask("yes/no", "Is there a vehicle?", f"No, it shows {a(drawn.name)}.", "no"))
        found.append(is_there(drawn.name, True, dice))
    return found
