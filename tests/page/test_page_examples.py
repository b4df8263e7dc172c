"""The examples an empty chat offers come from a list beside the pictures, and its faults cost nothing but them."""

from __future__ import annotations

import json
from pathlib import Path

from serve.page import examples

ROW = {"file": "cat.jpg", "title": "A cat", "questions": ["What is it?"], "licence": "CC0", "credit": "Somebody"}


def write(folder: Path, rows: object) -> Path:
    (folder / "cat.jpg").write_bytes(b"x")
    (folder / "examples.json").write_text(json.dumps(rows))
    return folder


def test_a_listed_picture_is_an_example_with_its_credit(tmp_path: Path) -> None:
    (example,) = examples.load(write(tmp_path, [ROW]))
    assert (example.title, example.questions, example.credit) == ("A cat", ("What is it?",), "Somebody · CC0")


def test_a_picture_that_is_missing_is_left_out(tmp_path: Path) -> None:
    assert len(examples.load(write(tmp_path, [ROW, ROW | {"file": "dog.jpg"}]))) == 1


def test_a_broken_list_means_no_examples(tmp_path: Path) -> None:
    for rows in ({"file": 1}, [1], [{"file": "cat.jpg"}], "text"):
        assert examples.load(write(tmp_path, rows)) == ()
    assert examples.load(tmp_path / "nowhere") == ()
