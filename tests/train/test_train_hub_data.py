"""Datasets of Hugging Face: rows as they lie in the file, pictures as bytes. Needs the package datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_core.errors import BadRequest
from llava_core.train.check import check_records
from llava_core.train.pictures import picture_bytes
from llava_core.train.records import to_sample
from llava_core.train.sources import HubRows, open_source

datasets: Any = pytest.importorskip("datasets", reason="optional: pip install datasets==5.2.0")
TURNS = [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "red"}]


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    file = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "red").save(file)
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "conversations": datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
        }
    )
    samples = [{"id": str(number), "images": [str(file)], "conversations": TURNS} for number in range(3)]
    return datasets.Dataset.from_list(samples, features=features)


def saved_plainly(rows: Any, folder: Path) -> str:
    rows.save_to_disk(folder / "plain")
    return str(folder / "plain")


def saved_with_splits(rows: Any, folder: Path) -> str:
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(folder / "splits")
    return str(folder / "splits")


def saved_as_parquet(rows: Any, folder: Path) -> str:
    rows.to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


@pytest.mark.parametrize("save", [saved_plainly, saved_with_splits, saved_as_parquet])
def test_a_dataset_gives_its_samples_with_their_pictures(
    save: Callable[[Any, Path], str], rows: Any, tmp_path: Path
) -> None:
    source = open_source(save(rows, tmp_path))
    assert len(source) == 3
    assert check_records(source).problems == ()
    sample = to_sample(source.record(1), source.place(1), source.pictures)
    [picture] = sample.pictures
    assert picture_bytes(picture) == (tmp_path / "a.png").read_bytes()
    assert sample.messages[1].text == "red"
    assert source.place(1).endswith("row 2")


def test_a_split_is_named_behind_a_hash(rows: Any, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    rows.to_parquet(tmp_path / "repo" / "train-00000-of-00001.parquet")
    rows.select([0]).to_parquet(tmp_path / "repo" / "test-00000-of-00001.parquet")
    assert len(open_source(f"hf:{tmp_path}/repo")) == 3
    assert len(open_source(f"hf:{tmp_path}/repo#test")) == 1
    with pytest.raises(BadRequest, match="cannot be read: Unknown split"):
        open_source(f"hf:{tmp_path}/repo#none")


def test_a_subset_of_a_dataset_is_named_behind_it(monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(*words: str, split: str) -> Any:
        asked.append((*words, split))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert isinstance(open_source("hf:owner/name"), HubRows)
    assert isinstance(open_source("hf:owner/name/charts#validation"), HubRows)
    assert asked == [("owner/name", "train"), ("owner/name", "charts", "validation")]
