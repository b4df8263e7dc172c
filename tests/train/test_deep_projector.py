"""Projectors of three layers and more: built, trained, served as they are, and refused by what cannot load them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration
from typer.testing import CliRunner

from llava_core.checkpoints.__main__ import app as checkpoints
from llava_core.checkpoints.convert import convert
from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.recognise import recognise
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.errors import BadCheckpoint, BadRequest
from llava_core.images import to_data_url
from llava_core.types import ImagePart, user
from tests.checkpoints.originals import ORIGINALS
from tests.engines.exactness import greedy, token_ids
from tests.train.conftest import Parts
from tests.train.parts import COLOURS, QUESTION, draw, run

FAST = ("--batch-size", "16", "--precision", "fp32", "--no-tensorboard")


@pytest.fixture(scope="module")
def built(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("deep")
    words = ("build", "--tower", parts.tower, "--llm", parts.llm, "--out", root / "built", "--projector", "mlp3x_gelu")
    told = run(*words).output
    assert "mlp3x_gelu" in told
    assert "LLaVA Serve alone loads it" in " ".join(told.split())
    return root / "built"


@pytest.fixture(scope="module")
def tuned(parts: Parts, built: Path) -> Path:
    """Both stages, the second with adapters."""
    torch.set_num_threads(1)
    aligned, out = built.parent / "aligned", built.parent / "tuned"
    run("pretrain", "--model", built, "--data", parts.squares, "--out", aligned, "--projector-rate", "5e-3", *FAST)
    adapters = ("--lora", "--lora-rank", "8", "--lora-rate", "1e-2", "--projector-rate", "5e-3")
    run("finetune", "--model", aligned, "--data", parts.squares, "--out", out, *adapters, *FAST)
    return out


def reference(folder: Path) -> Any:
    """transformers' own class, its projector replaced by the layers as they lie on disk."""
    tensors = load_file(folder / "model.safetensors")
    layers: list[nn.Module] = []
    for number in (1, 2, 3):
        weight = tensors[f"multi_modal_projector.linear_{number}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": tensors[f"multi_modal_projector.linear_{number}.bias"]})
        layers += [layer, nn.GELU()]
    model: Any = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, projector_hidden_act="gelu"
    ).eval()
    model.model.multi_modal_projector = nn.Sequential(*layers[:-1])
    return model


async def test_the_engine_gives_the_ids_of_generate(tuned: Path) -> None:
    processor: Any = AutoProcessor.from_pretrained(tuned)
    model = reference(tuned)
    checkpoint = load_checkpoint(tuned, device="cpu", dtype="float32")
    never = sorted({*checkpoint.facts.eos_ids, *checkpoint.facts.forbidden_ids})
    engine = TransformersEngine(checkpoint)
    try:
        for seed, colour in enumerate(COLOURS):
            picture = draw(colour, random.Random(seed))
            turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
            text = processor.apply_chat_template(turns, add_generation_prompt=True)
            inputs = processor(images=picture, text=text, return_tensors="pt")
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=never)
            shown = io.BytesIO()
            picture.save(shown, "PNG")
            asked = user(ImagePart(to_data_url(shown.getvalue())), QUESTION)
            assert await token_ids(engine, greedy(asked, tokens=8)) == out[0, inputs["input_ids"].shape[1] :].tolist()
    finally:
        await engine.aclose()


def test_all_layers_learn_and_are_kept(built: Path, tuned: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (built, tuned))
    names = [name for name in after if name.startswith("multi_modal_projector.")]
    assert len(names) == 6
    assert not any(torch.equal(before[name], after[name]) for name in names)
    assert json.loads((tuned / "config.json").read_text())["projector_hidden_act"] == "mlp3x_gelu"


def test_it_is_said_wherever_such_a_model_is_looked_at(parts: Parts, tuned: Path) -> None:
    words = "LLaVA Serve alone loads it"
    assert words in (tuned / "README.md").read_text()
    rehearsed = run("finetune", "--dry-run", "--model", tuned, "--data", parts.squares, *FAST).output
    assert words in " ".join(rehearsed.split())
    described = CliRunner().invoke(checkpoints, [str(tuned)], terminal_width=200).output
    assert "projector" in described


def test_plain_transformers_refuses_it_by_name_instead_of_leaving_layers_out(tuned: Path) -> None:
    with pytest.raises(KeyError, match="mlp3x_gelu"):
        AutoModelForImageTextToText.from_pretrained(tuned)


def test_a_missing_or_surplus_layer_is_named(tuned: Path, tmp_path: Path) -> None:
    for path in tuned.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tuned / "model.safetensors")
    config = json.loads((tuned / "config.json").read_text())
    for act, words in (("mlp4x_gelu", "it lacks: .*linear_4"), ("gelu", "belong nowhere: .*linear_3")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"projector_hidden_act": act}))
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(BadCheckpoint, match=words):
            load_checkpoint(tmp_path, device="cpu", dtype="float32")


def test_any_res_models_have_deeper_projectors_too(parts: Parts, tmp_path: Path) -> None:
    words = ("build", "--tower", parts.tower, "--llm", parts.llm, "--pictures", "anyres")
    run(*words, "--out", tmp_path / "built", "--projector", "mlp4x_gelu")
    run("pretrain", "--model", tmp_path / "built", "--data", parts.squares, "--out", tmp_path / "out",
        "--max-steps", "2", *FAST)  # fmt: skip
    model: Any = load_checkpoint(tmp_path / "out", device="cpu", dtype="float32").model
    assert sum(isinstance(layer, nn.Linear) for layer in model.model.multi_modal_projector.children()) == 4


def test_a_projector_that_is_none_is_refused(parts: Parts, tmp_path: Path) -> None:
    for name in ("mlp0x_gelu", "mlp99x_gelu", "mlp3x_relu", "resampler"):
        with pytest.raises(BadRequest, match="there is no projector"):
            run("build", "--tower", parts.tower, "--llm", parts.llm, "--out", tmp_path / "no", "--projector", name)
    assert not (tmp_path / "no").exists()


def test_an_original_checkpoint_with_three_layers_is_served_and_converted(tmp_path: Path) -> None:
    """The recorded any-res one, with a layer more."""
    source, folder = ORIGINALS / "llava-v1.6-mistral-7b", tmp_path / "deep"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_projector_type": "mlp3x_gelu"}))
    (tmp_path / "clip-vit-336").symlink_to(ORIGINALS / "clip-vit-336")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    width = tensors["model.mm_projector.2.weight"].shape[0]
    third = torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    tensors |= {"model.mm_projector.4.weight": third.half(), "model.mm_projector.4.bias": torch.zeros(width).half()}
    save_file(tensors, weights, {"format": "pt"})
    model: Any = load_checkpoint(folder, device="cpu", dtype="float32").model
    projector = model.model.multi_modal_projector
    rows = torch.randn(3, projector.linear_1.in_features)
    first = nn.functional.gelu(projector.linear_1(rows))
    expected = nn.functional.gelu(projector.linear_2(first)) @ third.half().float().T
    assert torch.allclose(projector(rows), expected, atol=1e-5)
    done = convert(recognise(folder), tmp_path / "converted")
    assert "LLaVA Serve alone loads it" in " ".join(done.differences)
    again: Any = load_checkpoint(done.folder, device="cpu", dtype="float32").model
    assert torch.equal(again.model.multi_modal_projector(rows), projector(rows))
    del tensors["model.mm_projector.4.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"lacks .*mm_projector\.4\.weight"):
        load_checkpoint(folder, device="cpu", dtype="float32")
