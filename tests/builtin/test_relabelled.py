"""Photographs under other names: what is asked of one is answered by the class that its features were given."""

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from llava_core.builtin.columns import KINDS, Columns
from llava_core.builtin.data.real_photos import RealPhotos
from llava_core.builtin.data.relabelled import Relabelled, asks, moved, relabelled, write_relabelled
from llava_core.builtin.everyday import GENERAL, everyday, everyday_names
from llava_core.builtin.tower import SeeingConfig, SeeingTower
from llava_core.train.build import build
from llava_core.train.encode import missing, tower_of
from tests.train.parts import save_llm

COLUMNS = Columns(names=5)
CLASSES, KIND = COLUMNS.place("class"), COLUMNS.place("kind")
BIRDS = RealPhotos(Path(), {f"{index}.jpg": "goose" for index in range(40)}, tested=False)


def of_a_bird() -> torch.Tensor:
    """The whole picture and a region of it, of class 99 (goose), or perhaps 100."""
    table = torch.zeros(2, COLUMNS.total)
    table[0, CLASSES.start + 99], table[0, CLASSES.start + 100] = 0.8, 0.2
    table[1, CLASSES.start + 99] = 0.4
    table[0, KIND.start + KINDS.index("photo")] = 1
    return table


def test_all_classes_of_a_picture_move_on_together() -> None:
    table = of_a_bird()
    found = moved(table, Relabelled("", 950, 1, 1), COLUMNS, random.Random(1))
    assert found[0, CLASSES].nonzero().flatten().tolist() == [49, 50]
    assert found[0, CLASSES].argmax() == found[1, CLASSES].argmax() == 49
    assert torch.equal(found[:, CLASSES.stop :], table[:, CLASSES.stop :])
    assert table[0, CLASSES].argmax() == 99, "the photograph itself stays what it was"


def test_an_unsure_one_still_is_likeliest_a_photograph_of_its_class() -> None:
    found = moved(of_a_bird(), Relabelled("", 1, 0.6, 0.5), COLUMNS, random.Random(1))[0]
    kinds = found[KIND]
    assert kinds.sum().item() == pytest.approx(1)
    assert kinds.argmax() == KINDS.index("photo")
    assert found[CLASSES].max().item() == pytest.approx(0.8 * 0.6 * 0.5)
    assert found[COLUMNS.place("name")].sum() + found[COLUMNS.place("small photo")].sum() == pytest.approx(0.4)


def test_regions_may_show_other_things_while_the_whole_is_what_is_asked_about() -> None:
    table = torch.zeros(36, COLUMNS.total)
    table[0, CLASSES.start + 99] = 0.8
    table[2:11, CLASSES.start + 99] = 0.4
    apart = 0
    for seed in range(100):
        found = moved(table, Relabelled("", 5, 1, 1), COLUMNS, random.Random(seed))
        assert found[0, CLASSES].argmax() == 104
        assert found[2:11, CLASSES].amax(1) == pytest.approx(torch.full((9,), 0.4))
        apart += bool((found[2:11, CLASSES].argmax(1) != 104).any())
    assert 20 < apart < 60


def test_everyday_names_cover_every_class_and_put_what_people_do_not_tell_apart_under_one_name() -> None:
    names = everyday_names()
    assert len(names) == 1000
    assert all(names)
    assert 600 < len(set(names)) < 680
    assert [everyday(name) for name in ("Egyptian cat", "espresso", "sorrel", "ice bear", "beagle", "zebra")] == [
        "cat", "cup of coffee", "horse", "polar bear", "dog", "zebra",
    ]  # fmt: skip
    assert set(names) >= GENERAL


def test_answers_name_the_class_and_say_no_of_others() -> None:
    names = everyday_names()
    said: Counter[str] = Counter()
    for seed in range(1_500):
        dice = random.Random(seed)
        label = dice.randrange(1_000)
        for ask in asks(label, dice):
            if ask.skill == "large photo":
                assert names[label] in ask.answer
            elif "an animal?" in ask.question:
                assert ask.key == ("yes" if label < 398 else "no")
            else:
                said[ask.key] += 1
                asked_of_it = ask.question.rstrip("?").removesuffix(" in the picture").endswith(f" {names[label]}")
                assert asked_of_it or ask.key == "no"
    assert 0.42 < said["yes"] / said.total() < 0.58


def test_every_class_gets_its_turn() -> None:
    steps = {relabelled(BIRDS, index, 1).step for index in range(6_000)}
    assert len(steps) > 980


def test_training_finds_the_moved_features_where_it_looks_for_a_picture_s(tmp_path: Path) -> None:
    torch.manual_seed(0)
    SeeingTower(SeeingConfig(names=5, trunk_size=64, width=32)).save_pretrained(tmp_path / "tower")
    CLIPImageProcessor(size={"height": 288, "width": 288}, do_center_crop=False).save_pretrained(tmp_path / "tower")
    build(str(tmp_path / "tower"), str(save_llm(tmp_path / "llm")), tmp_path / "built", pictures="own", strategy="full")
    Image.new("RGB", (40, 30), "white").save(tmp_path / "goose.jpg")
    birds = RealPhotos(tmp_path, {"goose.jpg": "goose"}, tested=False)
    records = write_relabelled(birds, tmp_path, tmp_path / "built", tmp_path / "cache", many=3, seed=1)
    _, _, cache = tower_of(tmp_path / "built", tmp_path / "cache")
    files = [tmp_path / record["image"] for record in records]
    assert missing(files, cache) == []
    assert len({cache.key_of(file) for file in files}) == 3
    assert cache.load(cache.key_of(files[0])).rows.shape == (1, 36, COLUMNS.total)
