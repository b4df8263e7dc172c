"""What people ask first is answered with all there is to say, in practice and in the questions that are held out."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from llava_core.builtin.data.charts import draw_chart
from llava_core.builtin.data.drawing import Drawn
from llava_core.builtin.data.samples import write_samples
from llava_core.builtin.data.scenes import draw_scene
from llava_core.builtin.data.sources import OneShape
from llava_core.builtin.data.talk import described, place_words
from llava_core.builtin.data.texts import draw_text
from llava_core.eval.questions import held_out, is_right


class Few:
    """Five photographs, drawn again and again."""

    tested = True

    def draw(self, what: str, dice: random.Random) -> Drawn:
        assert what == "large photo"
        number = dice.randrange(5)
        return Drawn(Image.new("RGB", (8, 8)), "photo", name=f"thing {number}", facts={"file": f"{number}.jpg"})


@pytest.mark.parametrize("seed", range(12))
def test_a_scene_is_described_whole_and_in_order(seed: int) -> None:
    drawn = draw_scene(random.Random(seed))
    [ask] = described(drawn, random.Random(seed))
    assert is_right("describe", ask.answer, ask.key)
    places = [f"{thing.words} at {place_words(thing)}" for thing in drawn.things]
    found = [ask.answer.find(place) for place in places]
    assert found[0] > 0
    assert found == sorted(found)
    if len(drawn.things) > 1:
        assert not is_right("describe", ask.answer.replace(drawn.things[0].words, "thing"), ask.key)


def test_text_and_charts_are_described_and_named_things_are_left_to_their_name() -> None:
    [text] = described(draw_text(random.Random(1), ["house", "sun"]), random.Random(1))
    assert text.answer == 'This is a picture of text. It says "H O U S E" and below it "S U N".'
    drawn = draw_chart(random.Random(2))
    [chart] = described(drawn, random.Random(2))
    assert all(f"bar {bar.label} is {bar.colour} with {bar.value}" in chart.answer for bar in drawn.things)
    assert described(Drawn(Image.new("RGB", (8, 8)), "photo", name="cat"), random.Random(3)) == []


def test_opened_chats_begin_with_it_and_go_on(tmp_path: Path) -> None:
    _, chats = write_samples(
        OneShape(), tmp_path, pictures=4, captions=0, rounds=1, texts=(), seed=1, say=lambda _: None, drilled=True,
        opened=True,
    )  # fmt: skip
    for sample in json.loads(chats.read_text("utf-8")):
        assert sample["conversations"][1]["value"].startswith("There is one shape: a")
        assert 4 <= len(sample["conversations"]) <= 8


def test_held_out_descriptions_may_take_many_words_and_few_photographs_are_asked_about_once() -> None:
    assert [question.most for question in held_out(OneShape(tested=True), 3, ["describe"])] == [96] * 3
    photos = held_out(Few(), 60, ["large photo"])
    assert sorted(question.key for question in photos) == [f"thing {number}" for number in range(5)]
