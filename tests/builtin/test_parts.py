"""Parts come from wherever pip is told to look, are checked, and are never fetched twice."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from llava_core.builtin.parts import Part, cache_folder, fetch
from llava_core.errors import MissingDependency


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and nowhere else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_wheel(shelf: Path) -> Part:
    path = shelf / "toy_part-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy_part/weights.bin", b"weights")
        wheel.writestr("toy_part-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-part\nVersion: 1.0\n")
        wheel.writestr("toy_part-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("toy_part-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Part("toy-part", "1.0", digest, "a toy", "MIT", path.stat().st_size)


def test_a_part_is_fetched_once_and_then_never_again(shelf: Path, tmp_path: Path) -> None:
    part = put_wheel(shelf)
    said: list[str] = []
    folder = fetch(part, said.append, tmp_path / "cache")
    assert (folder / "toy_part" / "weights.bin").read_bytes() == b"weights"
    next(shelf.iterdir()).unlink()
    assert fetch(part, said.append, tmp_path / "cache") == folder
    assert len(said) == 1
    assert "a toy" in said[0]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_part_that_is_not_the_one_that_was_tried_is_refused(shelf: Path, tmp_path: Path) -> None:
    part = put_wheel(shelf)
    other = Part(part.name, part.version, "0" * 64, part.what, part.licence, part.size)
    with pytest.raises(MissingDependency, match=r"toy-part 1\.0 is not the package that was tried"):
        fetch(other, lambda _: None, tmp_path / "cache")
    assert list((tmp_path / "cache" / "parts").iterdir()) == []


def test_a_part_that_cannot_be_had_is_named(shelf: Path, tmp_path: Path) -> None:
    part = Part("toy-part", "1.0", "0" * 64, "a toy", "MIT", 1)
    with pytest.raises(MissingDependency, match=r"a toy \(toy-part 1\.0\) could not be fetched with pip"):
        fetch(part, lambda _: None, tmp_path / "cache")


def test_the_cache_lies_where_the_person_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LLAVA_SERVE_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "llava-serve"
    monkeypatch.setenv("LLAVA_SERVE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
