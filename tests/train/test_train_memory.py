"""Training in less memory: the language model in 4 bits under its adapters, and activations computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaMLP

from llava_core.train.journal import Journal, run_folder
from llava_core.train.learn import learning
from llava_core.train.merge import merge
from llava_core.train.run import train
from llava_core.train.settings import Settings, settle
from llava_core.train.stage import prepare
from tests.train.conftest import Parts

SILENT = Console(quiet=True)
RANK, ALPHA = 4, 8
FALLS = 0.87
"""So far at least: with the embeddings of random words, which stay as they are, no loss comes to nothing."""


def settings(parts: Parts, out: Path, model: Path | None = None, **given: Any) -> Settings:
    chosen = {"model": str(model or parts.built), "data": (str(parts.squares),), "out": str(out)}
    fast = {"precision": "fp32", "tensorboard": False, "batch_size": 16, "micro_batch": 8, "save_every": 1000}
    adapters = {"lora": True, "lora_rank": RANK, "lora_alpha": ALPHA, "lora_rate": 1e-2, "projector_rate": 1e-2}
    return settle("finetune", None, {**chosen, **fast, **adapters, **given})


def losses(out: Path) -> list[float]:
    return [entry["loss"] for entry in Journal(run_folder(out)).losses()]


@pytest.fixture(scope="module")
def shrunk(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 4-bit weights under its adapters."""
    pytest.importorskip("bitsandbytes")
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("four-bit") / "out"
    return train(
        settings(parts, out, four_bit=True, epochs=4.0, eval_data=(str(parts.held_out),), samples=2, answer_tokens=2),
        SILENT,
        resume=False,
    )


def test_only_adapters_and_projector_learn_above_four_bits(parts: Parts, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = prepare(settings(parts, tmp_path / "out", four_bit=True, cache="off"), SILENT, records=None).model
    kinds = {
        type(module).__name__
        for name, module in model.named_modules()
        if name.startswith("model.language_model.") and name.endswith(("_proj", ".base_layer"))
    }
    assert "Linear4bit" in kinds
    assert "Linear" not in kinds
    assert all("lora_" in name or "projector" in name for name, _ in learning(model))


def test_over_four_bit_weights_the_loss_falls(shrunk: Path) -> None:
    found = losses(shrunk)
    assert found[-1] < FALLS * found[0]
    held_out = Journal(run_folder(shrunk)).evaluations()
    assert held_out[-1]["eval_loss"] < FALLS * held_out[0]["eval_loss"]


def test_adapters_of_a_four_bit_run_are_merged_into_the_whole_weights(
    parts: Parts, shrunk: Path, tmp_path: Path
) -> None:
    adapters = load_file(shrunk / "adapter" / "adapter_model.safetensors")
    before, after = (load_file(folder / "model.safetensors") for folder in (parts.built, shrunk))
    stems = [name.removesuffix(".lora_A.weight") for name in adapters if name.endswith(".lora_A.weight")]
    assert len(stems) == 2 * 7  # all linear layers of both blocks
    for stem in stems:
        change = adapters[f"{stem}.lora_B.weight"] @ adapters[f"{stem}.lora_A.weight"] * (ALPHA / RANK)
        place = f"language_model.model.{stem.partition('language_model.')[2]}.weight"
        assert change.abs().max() > 0
        assert torch.allclose(after[place], before[place] + change, atol=1e-6)
    assert "the language model in 4 bits meanwhile" in (shrunk / "README.md").read_text()
    merged = merge(shrunk, tmp_path / "merged")
    assert (merged.folder / "model.safetensors").read_bytes() == (shrunk / "model.safetensors").read_bytes()


def test_what_was_merged_from_four_bits_answers_as_well_as_what_trained(
    parts: Parts, shrunk: Path, tmp_path: Path
) -> None:
    """In full precision it is another model than the one that trained, by what 4 bits had lost of the base."""
    given = settings(parts, tmp_path, shrunk, data=(str(parts.held_out),), cache="off")
    stage = prepare(given, SILENT, records=None)
    with torch.no_grad():
        scored = stage.model(**stage.collate()([stage.data.lessons[at] for at in stage.data.taken]))
    held_out = Journal(run_folder(shrunk)).evaluations()
    assert float(scored.loss) == pytest.approx(held_out[-1]["eval_loss"], rel=0.02)


@pytest.mark.parametrize("four_bit", [False, True])
def test_activations_computed_twice_change_no_loss(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, four_bit: bool
) -> None:
    if four_bit:
        pytest.importorskip("bitsandbytes")
    computed = 0
    plain = LlamaMLP.forward

    def counted(self: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        nonlocal computed
        computed += 1
        return plain(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    counts: list[int] = []
    for twice in (False, True):
        computed = 0
        given = settings(parts, tmp_path / str(twice), max_steps=6, checkpoint_activations=twice, four_bit=four_bit)
        train(given, SILENT, resume=False)
        counts.append(computed)
    assert counts[1] == 2 * counts[0]
    kept, again = (losses(tmp_path / str(twice)) for twice in (False, True))
    assert again == pytest.approx(kept, rel=1e-4)
    assert kept[-1] < kept[0]
