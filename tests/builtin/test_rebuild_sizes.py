"""What a rebuild costs is said before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava_core.builtin.__main__ import app
from llava_core.builtin.rebuild import rebuild
from llava_core.builtin.rebuild_sizes import SIZES, cost_of


def test_the_help_tells_time_disk_and_memory_of_each_size() -> None:
    shown = " ".join(CliRunner().invoke(app, ["rebuild", "--help"]).output.split())
    for name, size in SIZES.items():
        assert f"{name} takes {size.words}; {size.disk_gb} GB of disk, {size.memory_gb} GB of memory" in shown


@pytest.mark.parametrize("size", SIZES)
def test_a_rebuild_says_what_it_takes_before_it_does_anything(size: str, tmp_path: Path) -> None:
    class Begun(Exception):
        pass

    def say(words: str) -> None:
        raise Begun(words)

    with pytest.raises(Begun) as said:
        rebuild(size, tmp_path / "out", say)
    assert str(said.value) == cost_of(size)
    assert not (tmp_path / "out").exists()
