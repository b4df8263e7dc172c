"""The commands, from the command line's words to what lies on disk."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from llava_core.checkpoints.load import load_checkpoint
from llava_core.errors import BadRequest
from llava_core.train.journal import Journal, run_folder
from llava_core.train.recipes import FINETUNE, PRETRAIN
from llava_core.train.reporting import Reporter
from llava_core.train.settings import as_toml, read_config, settle
from llava_core.train.watch import picture_of
from tests.train.conftest import Parts
from tests.train.parts import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def adapted(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with adapters, its features in a folder of their own."""
    root = tmp_path_factory.mktemp("adapted")
    torch.set_num_threads(1)
    ran = run(
        *("finetune", "--model", parts.built, "--data", parts.squares, "--out", root / "out", "--lora"),
        *("--lora-rank", "4", "--lora-alpha", "8", "--lora-rate", "1e-2", "--projector-rate", "1e-2"),
        *("--batch-size", "16", "--precision", "fp32", "--max-steps", "12", "--save-every", "6"),
        *("--eval-data", parts.held_out, "--samples", "2", "--answer-tokens", "4", "--cache", root / "features"),
    )
    assert ran.exit_code == 0
    return root / "out"


def test_the_recipes_have_the_papers_numbers() -> None:
    aligned, tuned = settle("pretrain", None, {}), settle("finetune", None, {})
    assert (aligned.projector_rate, aligned.batch_size, aligned.llm_rate, aligned.template) == (1e-3, 256, 0, "plain")
    assert (tuned.projector_rate, tuned.llm_rate, tuned.batch_size, tuned.tower_rate) == (2e-5, 2e-5, 128, 0)
    assert PRETRAIN.warmup == FINETUNE.warmup == 0.03
    assert PRETRAIN.schedule == FINETUNE.schedule == "cosine"
    lora = settle("finetune", None, {"lora": True})
    assert (lora.lora_rank, lora.lora_alpha, lora.lora_rate, lora.projector_rate) == (128, 256, 2e-4, 2e-5)
    assert lora.llm_rate == 0
    assert settle("finetune", None, {"four_bit": True}).lora


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('data = "squares.json"\nbatch-size = 32\nllm-rate = 1\nout = "run"\n')
    settings = settle("finetune", config, {"batch_size": 8})
    assert (settings.batch_size, settings.llm_rate, settings.projector_rate) == (8, 1.0, 2e-5)
    assert settings.data == (str(tmp_path / "squares.json"),)
    assert settings.out == str(tmp_path / "run")
    again = tmp_path / "again.toml"
    again.write_text(as_toml(settings))
    assert settle("finetune", again, {}) == settings
    for text, words in (
        ("batchsize = 3", "there is no setting 'batchsize'; near it: batch-size"),
        ("batch-size = true", "must be of kind int"),
        ("batch-size = ", "is not TOML"),
    ):
        config.write_text(text)
        with pytest.raises(BadRequest, match=words):
            read_config(config)
    for wrong in ({"batch_size": 0}, {"llm_rate": -1.0}, {"template": "x"}, {"micro_batch": 3}, {"warmup": 2.0}):
        with pytest.raises(BadRequest, match="--"):
            settle("finetune", None, wrong)


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "training").glob("*.toml")), ids=lambda file: file.name)
def test_the_example_configs_are_understood(file: Path) -> None:
    [stage] = [stage for stage in ("pretrain", "finetune") if f"llava_core.train {stage} --config" in file.read_text()]
    settings = settle(stage, file, {})
    assert Path(settings.model).parent == ROOT / "models"
    assert settings.needs("model", "data", "out") is settings
    assert settings.lora == ("lora" in file.name)


def test_a_rehearsal_tells_the_plan_and_writes_nothing(parts: Parts, tmp_path: Path) -> None:
    told = run(
        *("finetune", "--dry-run", "--model", parts.built, "--data", parts.squares, "--out", tmp_path / "out"),
        *("--batch-size", "16", "--precision", "fp32"),
    ).output
    for words in ("learns: projector", "learns: language model", "160 with 160 pictures", "10 of 16 samples", "memory"):
        assert words in told
    assert "on this machine" in told
    assert not (tmp_path / "out").exists()


def test_adapters_are_merged_and_kept_in_pefts_format(parts: Parts, adapted: Path) -> None:
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    base: Any = LlavaForConditionalGeneration.from_pretrained(parts.built, dtype=torch.float32)
    wrapped: Any = PeftModel.from_pretrained(base, str(adapted / "adapter"))
    base.load_state_dict(load_file(adapted / "adapter" / "projector.safetensors"), strict=False)
    merged: Any = LlavaForConditionalGeneration.from_pretrained(adapted, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        ours, theirs, before = merged(ids).logits, wrapped(ids).logits, None
        with wrapped.disable_adapter():
            before = wrapped(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, before, atol=1e-3)
    projector = load_file(adapted / "model.safetensors")["multi_modal_projector.linear_1.weight"]
    assert not torch.equal(
        projector, load_file(parts.built / "model.safetensors")["multi_modal_projector.linear_1.weight"]
    )


def test_a_saved_state_becomes_a_checkpoint_of_its_own(parts: Parts, adapted: Path, tmp_path: Path) -> None:
    told = run("merge", adapted, "--out", tmp_path / "last").output
    assert "step 12 on built" in told
    assert (tmp_path / "last" / "model.safetensors").read_bytes() == (adapted / "model.safetensors").read_bytes()
    run("merge", adapted, "--out", tmp_path / "sixth", "--step", "6")
    early = load_checkpoint(tmp_path / "sixth", device="cpu", dtype="float32")
    assert early.info.accepts_images
    with pytest.raises(BadRequest, match="no whole state of that step; there are: 12, 6"):
        run("merge", adapted, "--out", tmp_path / "none", "--step", "7")
    with pytest.raises(BadRequest, match="is no run"):
        run("merge", parts.built, "--out", tmp_path / "none")


def test_weights_lie_under_the_names_of_the_hub(adapted: Path) -> None:
    """As other engines expect them, whatever transformers calls them in memory."""
    names = set(load_file(adapted / "model.safetensors"))
    assert "vision_tower.vision_model.embeddings.class_embedding" in names
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert "multi_modal_projector.linear_2.bias" in names
    starts = {name.split(".")[0] for name in names}
    assert starts == {"vision_tower", "language_model", "multi_modal_projector"}
    processor = json.loads((adapted / "processor_config.json").read_text())
    assert processor["patch_size"] == 14
    assert processor["num_additional_image_tokens"] == 1
    assert processor["vision_feature_select_strategy"] == "default"


def test_watching_shows_loss_rates_and_answers(adapted: Path) -> None:
    shown = run("watch", adapted, "--once").output
    for words in ("step 12/12", "finished in", "rate ", "adapters", "held out ", "What colour is the square?"):
        assert words in shown
    with pytest.raises(BadRequest, match="there is no run in"):
        run("watch", adapted.parent, "--once")


def test_the_bar_leaves_room_for_all_figures_in_eighty_columns(tmp_path: Path) -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    rates = {"projector": 2e-5}
    reporter = Reporter(Journal(tmp_path), console, None, tokens=lambda: 100_000, rates=lambda: rates)
    control, state = TrainerControl(), TrainerState(max_steps=9_999)
    arguments = TrainingArguments(output_dir=str(tmp_path))
    reporter.on_train_begin(arguments, state, control)
    state.global_step = 9_000
    reporter.on_log(arguments, state, control, logs={"loss": 1.25})
    reporter.close()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("━", "step 9000/9999", "loss 1.2500", "rate 2.00e-05", "tokens/s", "s left"):
        assert words in shown


def test_a_watched_run_fits_the_terminal_however_long_its_answers(adapted: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder(adapted), tmp_path / "run")
    journal = Journal(tmp_path / "run")
    long = "a large red circle at the top left, " * 12
    for number in range(4):
        journal.sample({"step": 13, "question": f"{number}? {long}", "truth": long, "answer": long, "right": False})
    for width, height in ((80, 24), (60, 20), (200, 50)):
        console = Console(width=width, height=height, file=io.StringIO())
        console.print(picture_of(journal, "tuned", width - 2, height - 1))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert len(lines) < height
        assert {len(line) for line in lines} == {min(width - 2, 120)}
        for number in range(4):
            assert any(f"{number}? a" in line for line in lines)


def test_features_are_encoded_once_for_several_runs(parts: Parts, adapted: Path, tmp_path: Path) -> None:
    features = adapted.parent / "features"
    [kept] = [path for path in features.iterdir() if path.is_dir()]
    before = {path: path.stat().st_mtime_ns for path in kept.glob("*.bin")}
    ran = run(
        *("pretrain", "--model", parts.built, "--data", parts.squares, "--out", tmp_path / "out", "--max-steps", "2"),
        *("--batch-size", "8", "--precision", "fp32", "--cache", features, "--no-tensorboard"),
    )
    assert ran.exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in kept.glob("*.bin")} == before
    # Without a cache the tower runs at every step, to the same losses.
    run(
        *("pretrain", "--model", parts.built, "--data", parts.squares, "--out", tmp_path / "again", "--max-steps", "2"),
        *("--batch-size", "8", "--precision", "fp32", "--cache", "off", "--no-tensorboard"),
    )
    losses = [[entry["loss"] for entry in Journal(run_folder(tmp_path / name)).losses()] for name in ("out", "again")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_projector_of_one_layer_learns_one_layer(parts: Parts, tmp_path: Path) -> None:
    words = ("build", "--tower", parts.tower, "--llm", parts.llm, "--out")
    assert run(*words, tmp_path / "linear", "--projector", "linear").exit_code == 0
    run(
        *("pretrain", "--model", tmp_path / "linear", "--data", parts.squares, "--out", tmp_path / "out"),
        *("--max-steps", "2", "--batch-size", "8", "--precision", "fp32", "--no-tensorboard"),
    )
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(after["multi_modal_projector.linear_2.weight"], torch.eye(64))
    before = load_file(tmp_path / "linear" / "model.safetensors")
    assert not torch.equal(
        after["multi_modal_projector.linear_1.weight"], before["multi_modal_projector.linear_1.weight"]
    )


def test_the_tower_learns_only_at_a_rate_of_its_own(parts: Parts, tmp_path: Path) -> None:
    words = ("finetune", "--model", parts.built, "--data", parts.squares, "--max-steps", "2", "--batch-size", "8")
    common = ("--precision", "fp32", "--no-tensorboard")
    run(*words, *common, "--out", tmp_path / "frozen")
    run(*words, *common, "--out", tmp_path / "tuned", "--tower-rate", "1e-3")
    name = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    before = load_file(parts.built / "model.safetensors")[name]
    assert torch.equal(load_file(tmp_path / "frozen" / "model.safetensors")[name], before)
    assert not torch.equal(load_file(tmp_path / "tuned" / "model.safetensors")[name], before)
