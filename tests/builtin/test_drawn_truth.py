"""What is drawn is what is said about it, and the same seed draws the same."""

import random

import pytest

from llava_core.builtin.columns import COLOURS, COUNTS, SHAPES
from llava_core.builtin.data.charts import draw_chart
from llava_core.builtin.data.drawing import SIDE, Drawn, Thing, shade
from llava_core.builtin.data.icons import Icon
from llava_core.builtin.data.scenes import draw_scene
from llava_core.builtin.data.talk import asks, caption, place_words, references
from llava_core.builtin.data.texts import draw_text


def scene(seed: int) -> Drawn:
    return draw_scene(random.Random(seed))


@pytest.mark.parametrize("seed", range(20))
def test_the_middle_of_a_filled_shape_has_its_colour(seed: int) -> None:
    drawn = scene(seed)
    for thing in drawn.things:
        if thing.shape == "ring":
            continue
        pixel = drawn.image.getpixel((round(thing.x * SIDE), round(thing.y * SIDE)))
        assert isinstance(pixel, tuple)
        distance = min(
            sum(abs(a - b) for a, b in zip(pixel, shade(thing.colour, random.Random(i)), strict=True))
            for i in range(300)
        )
        assert distance < 60


def test_the_same_seed_draws_the_same_picture_and_another_seed_another() -> None:
    assert scene(3).image.tobytes() == scene(3).image.tobytes()
    assert scene(3).things == scene(3).things
    assert scene(3).image.tobytes() != scene(4).image.tobytes()


def test_shapes_stand_apart_and_inside_the_picture() -> None:
    for seed in range(60):
        things = scene(seed).things
        for index, thing in enumerate(things):
            assert thing.radius < thing.x < 1 - thing.radius
            assert thing.radius < thing.y < 1 - thing.radius
            for other in things[index + 1 :]:
                gap = ((thing.x - other.x) ** 2 + (thing.y - other.y) ** 2) ** 0.5
                assert gap > thing.radius + other.radius


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (0.1, 0.1, "the top left"),
        (0.5, 0.5, "the center"),
        (0.9, 0.5, "the middle right"),
        (0.5, 0.9, "the bottom center"),
    ],
)
def test_a_place_is_said_as_one_of_nine(x: float, y: float, words: str) -> None:
    assert place_words(Thing(x, y, 0.05, "circle", "red")) == words


def test_every_answer_about_a_scene_is_true() -> None:
    for seed in range(80):
        drawn = scene(seed)
        words = {thing.words for thing in drawn.things}
        for ask in asks(drawn, random.Random(seed)):
            if ask.skill == "color":
                assert ask.key in COLOURS
                assert any(thing.colour == ask.key for thing in drawn.things)
            if ask.skill == "shape":
                assert ask.key in SHAPES
            if ask.skill == "yes/no" and ask.question.startswith("Is there a") and "picture" not in ask.question:
                what = ask.question.removeprefix("Is there an ").removeprefix("Is there a ").rstrip("?")
                known = words | {thing.shape for thing in drawn.things}
                assert (what in known) == (ask.key == "yes")
            if ask.skill == "count" and ask.question.startswith("How many shapes"):
                assert ask.key == COUNTS[len(drawn.things)]
            assert ask.key.lower() in ask.answer.lower()


def test_yes_and_no_come_in_about_equal_parts() -> None:
    said = [ask.key for seed in range(300) for ask in asks(scene(seed), random.Random(seed)) if ask.skill == "yes/no"]
    assert 0.42 < said.count("yes") / len(said) < 0.58


def test_a_chat_of_three_turns_leads_from_one_thing_to_the_next() -> None:
    led = [chat for seed in range(60) if (chat := references(scene(seed), random.Random(seed)))]
    assert len(led) > 20
    for chat in led:
        assert [ask.skill for ask in chat] == ["position", "reference", "reference"]
        # Nothing after the first question names what is meant.
        assert not any(shape in ask.question for ask in chat[1:] for shape in SHAPES[:8])


def test_letters_are_where_they_were_written() -> None:
    drawn = draw_text(random.Random(1), ["House"])
    assert [letter.letter for letter in drawn.letters] == list("HOUSE")
    assert [letter.x for letter in drawn.letters] == sorted(letter.x for letter in drawn.letters)
    assert 'It says "H O U S E"' in caption(drawn, random.Random(1))


def test_a_taller_bar_has_the_larger_value() -> None:
    for seed in range(20):
        bars = draw_chart(random.Random(seed)).things
        for bar in bars:
            for other in bars:
                assert (bar.y < other.y) == ((bar.value or 0) > (other.value or 0))


def test_an_icon_is_for_tests_or_for_training_by_its_name_alone() -> None:
    icons = [Icon(f"thing {number}", "noto", f"thing-{number}") for number in range(2000)]
    tested = sum(icon.tested for icon in icons)
    assert 0.08 < tested / len(icons) < 0.16
    assert Icon("dog", "noto", "dog").tested == Icon("dog", "noto", "dog").tested
