"""A training sample is, id for id, what is served: prompts are equal, and only answers with their end are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_core.checkpoints.hub import read_side
from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.recognise import recognise
from llava_core.train.build import build
from llava_core.train.lessons import Teacher
from llava_core.train.records import BadSample, to_sample
from llava_core.train.stage import teacher_of
from llava_core.types import ImagePart, Message, assistant, system, user
from tests.train.conftest import Parts
from tests.train.parts import save_llm, save_tower

PICTURE = ImagePart("")
CHATS: dict[str, tuple[Message, ...]] = {
    "one turn": (user(PICTURE, "What colour is the square?"), assistant("It is red.")),
    "three turns": (
        user(PICTURE, "What is it?"),
        assistant("A square."),
        user("Is it red?"),
        assistant("Yes, it is."),
        user("Where?"),
        assistant("On the left."),
    ),
    "two pictures": (user(PICTURE, PICTURE, "Which is red?"), assistant("The first.")),
    "a picture later": (user("Hello"), assistant("Hello."), user("And this?", PICTURE), assistant("A blue square.")),
    "text only": (user("Is it green?"), assistant("No, it is not.")),
    "system": (system("It is red."), user(PICTURE, "What?"), assistant("red")),
    "marks as text": (user(PICTURE, "What is <image> or <|im_end|>?"), assistant("<|im_end|> is a mark, <image> too.")),
    "odd white space": (user(PICTURE, " What? "), assistant("Lines\n\nand  blanks ")),
}


def teacher(folder: Path, *, plain: bool = False) -> Teacher:
    found = recognise(folder)
    return teacher_of(found, read_side(found), plain=plain)


@pytest.fixture(scope="module")
def checkpoints(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One with the language model's own template, others with ours; with and without a begin-of-text token."""
    root = tmp_path_factory.mktemp("templates")
    bare = save_llm(root / "bare", bos=True, chat=False)
    found = {"own": parts.built}
    for name in ("vicuna_v1", "chatml_direct", "llava_v0"):
        found[name] = build(str(parts.tower), str(bare), root / name, conv_template=name).folder
    return found


@pytest.mark.parametrize("template", ["own", "vicuna_v1", "chatml_direct", "llava_v0"])
@pytest.mark.parametrize("chat", CHATS)
def test_a_lesson_begins_with_the_prompt_that_is_served(checkpoints: dict[str, Path], template: str, chat: str) -> None:
    served = load_checkpoint(checkpoints[template], device="cpu", dtype="float32")
    messages = CHATS[chat]
    picture = Image.new("RGB", (40, 30), "red")
    rows = served.vision.prepare(picture, alone=True).tokens  # pyright: ignore[reportOptionalMemberAccess]
    shown = sum(len(message.images) for message in messages)
    lesson = teacher(checkpoints[template]).lesson(messages, [rows] * shown)
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    assert len(lesson.taught) == len(answers)
    for place, (begin, end) in zip(answers, lesson.taught, strict=True):
        before = messages[:place]
        pictures = [picture] * sum(len(message.images) for message in before)
        assert lesson.ids[:begin] == served.prompt(before, pictures).ids
        said: Any = served.tokenizer.decode(lesson.ids[begin:end], skip_special_tokens=False)
        assert messages[place].text in said
        # What ends the answer is learned, and nothing after it.
        ended = lesson.ids[end - 1] in served.facts.eos_ids or any(stop in said for stop in served.facts.stop_strings)
        assert ended
        assert not set(lesson.ids[begin : end - 1]) & served.facts.eos_ids


def test_labels_name_the_next_token_of_answers_alone(parts: Parts) -> None:
    lesson = teacher(parts.built).lesson(CHATS["three turns"], [4])
    labels = lesson.labels()
    for place, label in enumerate(labels):
        taught = any(begin <= place + 1 < end for begin, end in lesson.taught)
        assert label == (lesson.ids[place + 1] if taught else -100)


def test_a_caption_follows_its_picture_without_a_word_around_it(parts: Parts) -> None:
    held = teacher(parts.built, plain=True)
    lesson = held.lesson((user(PICTURE, "Say what it is."), assistant("A blue square.")), [4])
    tokenizer: Any = held.tokenizer
    placeholder = tokenizer.convert_tokens_to_ids("<image>")
    assert lesson.ids[:4] == (placeholder,) * 4
    assert lesson.taught == ((4, len(lesson.ids)),)
    assert tokenizer.decode(lesson.ids[4:]) == "A blue square.\n"


def test_a_template_that_changes_earlier_turns_is_refused_not_masked(parts: Parts, tmp_path: Path) -> None:
    llm = save_llm(tmp_path / "llm")
    forgetful = (
        "{% for message in messages %}{% if not loop.last or message['role'] == 'user' %}"
        "{{ '<|im_start|>' + loop.revindex|string + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "<|im_start|>assistant\n"
    )
    (llm / "chat_template.jinja").write_text(forgetful)
    built = build(str(parts.tower), str(llm), tmp_path / "built").folder
    with pytest.raises(BadSample, match="does not begin with the prompt its answer is served from"):
        teacher(built).lesson(CHATS["three turns"], [4])


def test_pictures_stand_where_the_page_puts_them() -> None:
    def parts_of(value: str, *, first: bool = True) -> tuple[str, ...]:
        record = {"image": "a.png", "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "x"}]}
        sample = to_sample(record, "here", Path(), pictures_first=first)
        return tuple("PICTURE" if isinstance(part, ImagePart) else part.text for part in sample.messages[0].parts)

    assert parts_of("<image>\nWhat?") == ("PICTURE", "What?")
    assert parts_of("What?\n<image>") == ("PICTURE", "What?")
    assert parts_of("What?\n<image>", first=False) == ("What?", "PICTURE")
    assert parts_of("Is <image> red?") == ("Is ", "PICTURE", " red?")


@pytest.mark.parametrize("kind", ["siglip", "dinov2"])
def test_other_towers_are_built_and_served(kind: str, parts: Parts, tmp_path: Path) -> None:
    tower = save_tower(tmp_path / "tower", kind=kind)
    built = build(str(tower), str(parts.llm), tmp_path / "built").folder
    served = load_checkpoint(built, device="cpu", dtype="float32")
    prompt = served.prompt([user(PICTURE, "What?")], [Image.new("RGB", (50, 30), "blue")])
    [features] = served.encode([prompt.images[0].image])
    assert features.shape == (4, 64)
