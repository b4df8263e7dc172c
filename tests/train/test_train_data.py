"""Data in every form: read on demand, checked before training, each wrong sample named with its line and the reason."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from llava_core.errors import BadRequest
from llava_core.train.check import Survey, check_records
from llava_core.train.journal import Journal, run_folder
from llava_core.train.records import Sample, to_sample
from llava_core.train.report import check_and_print
from llava_core.train.run import train
from llava_core.train.sampler import GroupedOrder
from llava_core.train.settings import settle
from llava_core.train.sources import locate, open_source
from llava_core.train.stage import prepare
from tests.train.conftest import Parts
from tests.train.parts import QUESTION, sample, write_samples

GOOD = {"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "red"}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def samples(data: Path) -> list[Sample]:
    source = open_source(str(data))
    found = [locate(source, index) for index in range(len(source))]
    return [to_sample(inner.record(at), inner.place(at), inner.pictures) for inner, at in found]


def test_the_same_samples_come_from_json_lines_folder_and_captions(picture: Path, tmp_path: Path) -> None:
    record = sample("a.png", "red", "one")
    whole = write_samples(tmp_path / "data.json", [record])
    lines = tmp_path / "data.jsonl"
    lines.write_text(f"\n{json.dumps(record)}\n\n")
    [from_json], [from_lines] = samples(whole), samples(lines)
    assert from_json.messages == from_lines.messages
    assert from_json.pictures == from_lines.pictures == (picture,)
    assert (from_json.place, from_lines.place) == ("data.json item 1", "data.jsonl line 2")
    assert [each.place for each in samples(tmp_path)] == ["data.json item 1", "data.jsonl line 2"]
    captioned = tmp_path / "captioned"
    captioned.mkdir()
    shutil.copy(picture, captioned / "cat.png")
    (captioned / "cat.txt").write_text("A red field.\n")
    [caption] = samples(captioned)
    assert caption.messages[1].text == "A red field."
    assert caption.pictures == (captioned / "cat.png",)


def test_openai_messages_are_read_too(picture: Path, tmp_path: Path) -> None:
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    [theirs] = samples(write_samples(tmp_path / "data.json", [{"images": ["a.png"], "messages": turns}]))
    [ours] = samples(write_samples(tmp_path / "ours.json", [sample("a.png", "red")]))
    assert theirs.messages == ours.messages


WRONG: dict[str, tuple[Any, str]] = {
    "missing picture": (sample("none.png", "red"), "'none.png' is not there|none.png' is not there"),
    "odd role": ({"image": "a.png", "conversations": [{"from": "dog", "value": "x"}]}, "turn 1 is from 'dog'"),
    "two questions": ({"conversations": [GOOD[0], GOOD[0]], "image": "a.png"}, "turn 2 is the user's, where the assis"),
    "no answer": ({"image": "a.png", "conversations": [GOOD[0]]}, "does not end with an answer"),
    "empty answer": ({"image": "a.png", "conversations": [GOOD[0], {"from": "gpt", "value": " "}]}, "turn 2 is empty"),
    "mark without picture": ({"conversations": list(GOOD)}, "1 <image> mark in the text, but 0 pictures"),
    "picture without mark": (
        {"image": "a.png", "conversations": [{"from": "human", "value": "x"}, GOOD[1]]},
        "0 <image> marks in the text, but 1 picture$",
    ),
    "mark in an answer": (
        {"image": "a.png", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<image>"}]},
        "picture",
    ),
    "no picture file": (sample("data.json", "red"), "a picture that can be read"),
    "no object": ("x", "this is str"),
    "nothing in it": ({"id": "empty"}, "neither `conversations` nor a `caption`"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_sample_is_named_with_its_line_and_the_reason(kind: str, picture: Path, tmp_path: Path) -> None:
    record, reason = WRONG[kind]
    data = write_samples(tmp_path / "data.json", [sample("a.png", "red"), record])
    survey = check_records(open_source(str(data)))
    [problem] = survey.problems
    assert problem.place == "data.json item 2"
    assert survey.good.tolist() == [0]
    assert any(part in problem.reason for part in reason.removesuffix("$").split("|"))


def test_the_report_counts_and_lists(parts: Parts, picture: Path, tmp_path: Path) -> None:
    lines = tmp_path / "data.jsonl"
    long = sample("a.png", "red " * 300, "long")
    lines.write_text(f"{json.dumps(sample('a.png', 'red', 'fine'))}\nnot json\n{json.dumps(long)}\n")
    console = Console(record=True, width=200, quiet=False, file=(tmp_path / "out").open("w"))
    good = check_and_print([str(lines)], str(parts.built), console, images="", max_length=100, plain=False, workers=0)
    text = console.export_text()
    assert not good
    assert "3 samples, 1 of them good" in text
    assert "data.jsonl line 2" in text
    assert "not JSON" in text
    assert "data.jsonl line 3" in text
    assert "tokens, 100 are allowed (--max-length)" in text


def test_training_on_wrong_samples_is_refused_unless_they_are_left_out(parts: Parts, tmp_path: Path) -> None:
    data = write_samples(tmp_path / "data.json", [*json.loads(parts.squares.read_text())[:4], {"id": "bad"}])
    given = {
        "model": str(parts.built),
        "data": (str(data),),
        "images": str(parts.squares.parent),
        "cache": "off",
        "precision": "fp32",
    }
    quiet = Console(quiet=True)
    with pytest.raises(BadRequest, match=r"1 of 5 samples are wrong:\n  data.json item 5: it has neither"):
        prepare(settle("finetune", None, given), quiet, records=None)
    stage = prepare(settle("finetune", None, given | {"skip_bad": True}), quiet, records=None)
    assert stage.data.taken.tolist() == [0, 1, 2, 3]


def damaged_pictures(folder: Path) -> dict[str, str]:
    """File names and what is wrong with them."""
    whole = io.BytesIO()
    Image.effect_noise((200, 200), 80).convert("RGB").save(whole, "JPEG")
    (folder / "cut-off.jpg").write_bytes(whole.getvalue()[:-400])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "words.jpg").write_text("no picture at all\n" * 20)
    return {
        "cut-off.jpg": "damaged or cut off",
        "empty.jpg": "no picture that can be read",
        "words.jpg": "no picture that can be read",
        "gone.jpg": "is not there",
    }


@pytest.mark.parametrize("cache", ["", "off"], ids=["features kept", "no features kept"])
def test_damaged_pictures_are_found_before_training_and_left_out_when_asked(
    cache: str, parts: Parts, tmp_path: Path
) -> None:
    wrong = damaged_pictures(tmp_path)
    good = json.loads(parts.squares.read_text())[:12]
    for one in good:
        one["image"] = str(parts.squares.parent / one["image"])
    data = write_samples(tmp_path / "data.json", [*good, *(sample(name, "red", name) for name in wrong)])
    given = {"model": str(parts.built), "data": (str(data),), "batch_size": 4, "precision": "fp32", "cache": cache}
    given |= {"tensorboard": False, "out": str(tmp_path / "out")}
    with pytest.raises(BadRequest) as refused:
        train(settle("pretrain", None, given), Console(quiet=True), resume=False)
    assert "4 of 16 samples are wrong" in refused.value.message
    for number, (name, reason) in enumerate(wrong.items(), 13):
        [line] = [line for line in refused.value.message.splitlines() if name in line]
        assert f"item {number}" in line
        assert reason in line
    assert len(check_records(open_source(str(data))).problems) == 4
    out = train(settle("pretrain", None, given | {"skip_bad": True}), Console(quiet=True), resume=False)
    assert Journal(run_folder(out)).plan()["samples"] == 12
    assert Journal(run_folder(out)).plan()["left_out"] == 4
    assert len(Journal(run_folder(out)).losses()) == 3


@pytest.mark.parametrize("workers", [0, 1], ids=["this process loads", "another process loads"])
def test_a_picture_that_is_damaged_after_the_check_ends_the_run_with_a_sentence(
    workers: int, parts: Parts, tmp_path: Path
) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (48, 48), "red").save(picture)
    data = write_samples(tmp_path / "data.json", [sample("a.png", "red")] * 4)
    given = {"model": str(parts.built), "data": (str(data),), "batch_size": 4, "precision": "fp32", "cache": "off"}
    given |= {"tensorboard": False, "out": str(tmp_path / "out"), "workers": workers}
    settings = settle("pretrain", None, given)
    prepare(settings, Console(quiet=True), records=tmp_path / "out" / "run")
    picture.write_bytes(picture.read_bytes()[:-60])
    with pytest.raises(BadRequest, match=r"no longer what the check found: its picture .*Put it back.*--resume"):
        train(settings, Console(quiet=True), resume=False)


def test_a_picture_that_is_gone_after_the_check_ends_the_run_with_a_sentence(parts: Parts, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (48, 48), "red").save(tmp_path / name)
    data = write_samples(tmp_path / "data.json", [sample("a.png", "red"), sample("b.png", "red")] * 2)
    given = {"model": str(parts.built), "data": (str(data),), "batch_size": 4, "precision": "fp32"}
    given |= {"tensorboard": False, "out": str(tmp_path / "out"), "cache": str(tmp_path / "features")}
    settings = settle("pretrain", None, given)
    prepare(settings, Console(quiet=True), records=tmp_path / "out" / "run")
    (tmp_path / "b.png").unlink()
    with pytest.raises(BadRequest, match=r"no longer what the check found: its picture .* is not there.*Put it back"):
        train(settings, Console(quiet=True), resume=False)


def test_data_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    for name, words in (("none.json", "there is no data at"), ("", "holds no samples")):
        with pytest.raises(BadRequest, match=words):
            open_source(str(tmp_path / name))
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(BadRequest, match="not a list of samples"):
        open_source(str(tmp_path / "odd.json"))


def test_samples_that_go_through_together_are_alike_and_every_one_comes_once() -> None:
    dice = np.random.default_rng(1)
    lengths, pictured = dice.integers(10, 500, 203), dice.random(203) < 0.6
    order = GroupedOrder(lengths, pictured, group=8, seed=3)
    found = list(order)
    assert sorted(found) == list(range(203))
    groups = [found[start : start + 8] for start in range(0, 192, 8)]
    alike = [group for group in groups if len(set(pictured[group])) == 1]
    assert len(alike) >= len(groups) - 4
    wasted = sum(lengths[group].max() * 8 - lengths[group].sum() for group in groups)
    shuffled = dice.permutation(203)[:192].reshape(-1, 8)
    assert wasted < 0.5 * sum(lengths[group].max() * 8 - lengths[group].sum() for group in shuffled)
    assert list(GroupedOrder(lengths, pictured, group=8, seed=3)) == found
    order.set_epoch(1)
    assert list(order) != found


def test_an_empty_survey_has_no_good_samples() -> None:
    nothing = np.zeros(3, np.int32)
    assert Survey(nothing, nothing, nothing, ()).good.size == 0
