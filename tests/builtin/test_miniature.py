"""The built-in model's recipe in miniature, by the command itself: data drawn, both stages, the card."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_core.builtin.parts import SERVED, fetch
from llava_core.errors import MissingDependency

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 600.0


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for part in SERVED:
        try:
            fetch(part, print)
        except MissingDependency as missing:
            pytest.skip(missing.message)
    out = tmp_path_factory.mktemp("miniature") / "out"
    command = [sys.executable, "-m", "llava_core.builtin", "rebuild", "--size", "tiny", "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return out


@pytest.mark.slow
def test_both_stages_learn(rebuilt: Path) -> None:
    for stage, factor in (("stage1", 0.9), ("stage2", 0.3)):
        losses = [entry["loss"] for entry in _lines(rebuilt / stage / "run" / "log.jsonl") if "loss" in entry]
        assert losses[-1] < factor * losses[0]


@pytest.mark.slow
def test_colours_of_unseen_shapes_are_told_far_better_than_blind(rebuilt: Path) -> None:
    both, first = json.loads((rebuilt / "figures.json").read_text())
    [color], [color_first] = both["scores"], first["scores"]
    assert color["asked"] == color_first["asked"] == 24
    assert color["right"] >= 18
    assert color["blind"] <= 8
    # As the paper says: aligned alone, a model has not learned to answer.
    assert color_first["right"] < color["right"]


@pytest.mark.slow
def test_the_card_claims_no_more_than_was_done(rebuilt: Path) -> None:
    card = (rebuilt / "CARD.md").read_text()
    assert "colour of a drawn shape | 24 |" in card
    assert "knows nothing else of pictures" in card
    assert "nothing else" in card
    assert "CIFAR" not in card
    assert (rebuilt / "weights" / "builtin.safetensors").stat().st_size < 40e6


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
