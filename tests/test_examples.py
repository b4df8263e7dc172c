"""The example pictures: listed, licensed, small, and good to show to a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_core.config import ImageLimits
from llava_core.images import decode_image

FOLDER = Path(__file__).resolve().parents[1] / "examples"
LISTED = json.loads((FOLDER / "examples.json").read_text("utf-8"))


def test_every_picture_is_listed_and_every_listed_picture_is_there() -> None:
    pictures = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".jpg", ".png"))
    assert sorted(example["file"] for example in LISTED) == pictures
    assert len(pictures) >= 10


@pytest.mark.parametrize("example", LISTED, ids=lambda example: example["file"])
def test_an_example_is_small_decodes_and_says_whose_it_is(example: dict[str, object]) -> None:
    assert set(example) == {"file", "title", "questions", "licence", "credit"}
    assert example["title"]
    assert example["questions"]
    assert example["licence"] in ("CC0 1.0", "CC BY 2.0", "public domain")
    assert example["credit"]
    data = (FOLDER / str(example["file"])).read_bytes()
    assert len(data) <= 200 * 1024
    assert max(decode_image(data, ImageLimits()).size) <= 1280


def test_every_picture_has_its_line_among_the_licences() -> None:
    text = (FOLDER / "LICENSES.md").read_text("utf-8")
    for example in LISTED:
        line = next(line for line in text.splitlines() if f"`{example['file']}`" in line)
        assert example["licence"] in line
        assert example["credit"].split(", flickr")[0] in line
