"""Practice asks what is hard, answers it truly, and says "no" as often as "yes"."""

import random
from collections import Counter

from llava_core.builtin.columns import COUNTS
from llava_core.builtin.data.drawing import Drawn
from llava_core.builtin.data.drills import drill
from llava_core.builtin.data.scenes import draw_scene
from llava_core.builtin.data.talk import Ask, place_words


def drilled(seeds: range) -> list[tuple[Drawn, list[Ask]]]:
    scenes = [(seed, draw_scene(random.Random(seed))) for seed in seeds]
    return [(drawn, drill(drawn, random.Random(seed))) for seed, drawn in scenes]


def test_every_answer_is_true() -> None:
    for drawn, asked in drilled(range(80)):
        words = {thing.words for thing in drawn.things}
        for ask in asked:
            assert ask.key in ask.answer.lower()
            if ask.skill == "position":
                [thing] = [thing for thing in drawn.things if f"the {thing.words}?" in ask.question]
                assert ask.key == place_words(thing)
            if ask.skill == "count" and ask.question.startswith("How many") and ask.key != "no":
                what = ask.question.removeprefix("How many ").split(" ")[0]
                meant = [t for t in drawn.things if what in ("shapes", t.colour, f"{t.shape}s", f"{t.shape}es")]
                assert ask.key == COUNTS[len(meant)]
            if ask.skill == "yes/no" and ask.question.startswith("Do you see a"):
                what = ask.question.removeprefix("Do you see an ").removeprefix("Do you see a ").rstrip("?")
                assert (what in words | {thing.shape for thing in drawn.things}) == (ask.key == "yes")


def test_yes_and_no_come_evenly_and_half_of_what_is_missing_is_near() -> None:
    near: Counter[bool] = Counter()
    said: Counter[str] = Counter()
    for drawn, asked in drilled(range(600)):
        colours, shapes = {thing.colour for thing in drawn.things}, {thing.shape for thing in drawn.things}
        for ask in asked:
            if ask.skill != "yes/no":
                continue
            said[ask.key] += 1
            pair = ask.question.rstrip("?").removesuffix(" in the picture").split(" ")[-2:]
            if ask.key == "no" and len(colours) > 1 < len(shapes) and pair[1] not in ("a", "an"):
                near[pair[0] in colours and pair[1] in shapes] += 1
    assert 0.46 < said["yes"] / said.total() < 0.54
    assert near[True] > 0.2 * near.total()


def test_nothing_is_asked_twice_in_a_chat() -> None:
    for _, asked in drilled(range(120)):
        questions = [ask.question for ask in asked]
        assert 0 < len(questions) <= 6
        assert len(set(questions)) == len(questions)
