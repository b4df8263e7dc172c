"""Checkpoints put together from small parts, and pictures of coloured squares, made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from llava_core.train.build import build
from tests.train.parts import save_llm, save_squares, save_tower


@dataclass(frozen=True)
class Parts:
    """Folders: a CLIP tower, a language model, what `build` makes of them, and data for it."""

    tower: Path
    llm: Path
    built: Path
    squares: Path
    held_out: Path


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    root = tmp_path_factory.mktemp("parts")
    tower, llm = save_tower(root / "clip"), save_llm(root / "llm")
    build(str(tower), str(llm), root / "built")
    squares = save_squares(root, 160, seed=1)
    return Parts(tower, llm, root / "built", squares, save_squares(root, 40, seed=2, name="held-out"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on two, and the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
