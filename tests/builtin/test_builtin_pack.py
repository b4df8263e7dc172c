"""What is shipped of several runs does what the runs did one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llava_core.builtin.pack import pack
from llava_core.errors import BadCheckpoint
from llava_core.train.export import save_learned

A, B = "layer.lora_A.default.weight", "layer.lora_B.default.weight"


def a_run(folder: Path, rank: int, alpha: int, learned: dict[str, torch.Tensor]) -> Path:
    state = folder / "run" / "checkpoint-5"
    state.mkdir(parents=True)
    save_learned(learned, state)
    (state / "trainer_state.json").write_text(json.dumps({}))
    (folder / "run" / "settings.toml").write_text(f"lora = true\nlora-rank = {rank}\nlora-alpha = {alpha}\n")
    return folder


def halves(rank: int, seed: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {
        A: torch.randn(rank, 6, generator=made).half().float(),
        B: torch.randn(4, rank, generator=made).half().float(),
    }


def test_adapters_of_two_runs_become_one_whose_product_is_the_sum(tmp_path: Path) -> None:
    first, second = halves(3, 1) | {"projector": torch.zeros(2)}, halves(2, 2) | {"projector": torch.ones(2)}
    runs = [a_run(tmp_path / "one", 3, 6, first), a_run(tmp_path / "two", 2, 4, second)]
    packed = pack(runs, tmp_path / "out.safetensors", lambda _: None)
    found = load_file(packed)
    torch.testing.assert_close(found[B].float() @ found[A].float(), first[B] @ first[A] + second[B] @ second[A])
    assert found["projector"].tolist() == [1, 1], "what learned whole is as the last run left it"
    with safe_open(packed, "pt") as content:
        assert content.metadata()["scale"] == "2.0"


def test_runs_that_scale_differently_are_not_added_up(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "one", 3, 6, halves(3, 1)), a_run(tmp_path / "two", 2, 2, halves(2, 2))]
    with pytest.raises(BadCheckpoint, match="scale them differently"):
        pack(runs, tmp_path / "out.safetensors", lambda _: None)


def test_of_more_ranks_than_are_shipped_the_strongest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_core.builtin.pack.RANK", 3)
    strong = halves(3, 1)
    weak = {name: tensor / 32 for name, tensor in halves(2, 2).items()}
    runs = [a_run(tmp_path / "one", 3, 6, strong), a_run(tmp_path / "two", 2, 4, weak)]
    said: list[str] = []
    found = load_file(pack(runs, tmp_path / "out.safetensors", said.append))
    assert found[A].shape == (3, 6)
    assert found[B].shape == (4, 3)
    whole = strong[B] @ strong[A] + weak[B] @ weak[A]
    assert (found[B].float() @ found[A].float() - whole).norm() < 0.01 * whole.norm()
    assert "energy kept" in said[0]
