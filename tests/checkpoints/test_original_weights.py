"""Weights of original-format checkpoints: every layout they come in, and each one missing or left over named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.original import read_original
from llava_core.checkpoints.recognise import recognise
from llava_core.checkpoints.weights import read_tensors
from llava_core.errors import BadCheckpoint
from llava_core.types import user
from tests.checkpoints.originals import IMAGE, ORIGINALS, greedy, messages_of, picture, pictures_of, records

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a recorded checkpoint that may be spoilt, its towers and base beside it."""

    def copied(name: str) -> Path:
        for each in (name, "clip-vit-224", "clip-vit-336", "vicuna-base"):
            shutil.copytree(ORIGINALS / each, tmp_path / each, dirs_exist_ok=True)
        return tmp_path / name

    return copied


def rewrite(file: Path, change: Callable[[Tensors], Any]) -> None:
    tensors: Tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    change(tensors)
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def same_answer(folder: Path, name: str, **arguments: Any) -> None:
    record = records(name)[0]
    loaded = load_checkpoint(folder, device="cpu", dtype="float32", conv_template=record["template"], **arguments)
    prompt = loaded.prompt(messages_of(record), pictures_of(record))
    assert greedy(loaded, prompt, 24)[1] == record["greedy_tokens"]


def test_safetensors_in_shards(copy: Callable[[str], Path]) -> None:
    folder = copy("llava-v1.6-34b")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same_answer(folder, "llava-v1.6-34b")


def test_an_adapter_in_safetensors(copy: Callable[[str], Path]) -> None:
    folder = copy("llava-v1.5-7b-lora")
    save_file(read_tensors([folder / "adapter_model.bin"]), folder / "adapter_model.safetensors")
    (folder / "adapter_model.bin").unlink()
    same_answer(folder, "llava-v1.5-7b-lora")


def test_a_base_that_is_named_outranks_the_adapters_own(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("llava-v1.5-7b-lora")
    edit(folder / "adapter_config.json", base_model_name_or_path="lmsys/vicuna-7b-v1.5")
    moved = tmp_path / "elsewhere"
    (tmp_path / "vicuna-base").rename(moved)
    same_answer(folder, "llava-v1.5-7b-lora", base=str(moved))


def test_computed_buffers_of_older_versions_are_dropped(copy: Callable[[str], Path]) -> None:
    folder = copy("llava-7b-v0")

    def add(tensors: Tensors) -> None:
        for layer in range(3):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(6)

    rewrite(folder / "pytorch_model.bin", add)
    same_answer(folder, "llava-7b-v0")


def test_a_padded_vocabulary_says_only_what_the_tokenizer_has(copy: Callable[[str], Path]) -> None:
    folder = copy("llava-v1.6-vicuna-7b")

    def pad(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat((tensors[name], 9 * torch.ones(64, 48, dtype=torch.float16)))

    rewrite(folder / "model.safetensors", pad)
    parts = read_original(recognise(folder))
    assert (parts.vocabulary.trained, parts.vocabulary.placeholder, parts.vocabulary.rows) == (800, 800, 896)
    same_answer(folder, "llava-v1.6-vicuna-7b")


def drop(*names: str) -> Callable[[Tensors], None]:
    return lambda tensors: [tensors.pop(name) for name in names] and None


def add(**tensors: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda given: given.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})


SPOILT: list[tuple[str, str, Callable[[Tensors], None], str]] = [
    ("llava-7b-v0", "pytorch_model.bin", drop("model.layers.1.mlp.up_proj.weight"), "lacks model.layers.1.mlp.up_proj"),
    ("llava-7b-v0", "pytorch_model.bin", drop("model.mm_projector.bias"), r"lacks model.mm_projector.0.bias"),
    ("llava-7b-v0", "pytorch_model.bin", drop("lm_head.weight"), "lacks lm_head.weight"),
    ("llava-7b-v0", "pytorch_model.bin", add(model__mm_projector__2__weight=torch.eye(48)), "has no such layer"),
    ("llava-v1.6-34b", "model.safetensors", drop("model.image_newline"), "lacks model.image_newline"),
    (
        "llava-v1.6-34b",
        "model.safetensors",
        drop("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"),
        r"lacks model\.vision_tower\.vision_tower\.vision_model\.pre_layrnorm\.bias",
    ),
    ("llava-v1.6-34b", "model.safetensors", add(model__extra=torch.ones(3)), "belong nowhere: model.extra"),
    ("llava-v1.6-34b", "model.safetensors", add(odd=torch.ones(3)), "belong nowhere: odd"),
    (
        "llava-v1.6-34b",
        "model.safetensors",
        add(model__norm__weight=torch.ones(3)),
        r"(?s)shape.*model.norm.weight is \(3,\), config.json wants \(48,\)",
    ),
    (
        "llava-v1.5-7b-lora",
        "non_lora_trainables.bin",
        drop("base_model.model.model.mm_projector.2.bias"),
        "lacks model.mm",
    ),
    (
        "llava-v1.5-7b-lora",
        "adapter_model.bin",
        drop("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
        r"adapter .* lacks .*layers\.0\.self_attn\.q_proj\.lora_A",
    ),
    (
        "llava-v1.5-7b-lora",
        "adapter_model.bin",
        add(base_model__model__model__layers__9__self_attn__q_proj__lora_A__weight=torch.ones(4, 48)),
        r"adapter .* belong nowhere: .*layers\.9",
    ),
    (
        "llava-v1.5-7b-lora",
        "adapter_model.bin",
        add(base_model__model__model__layers__0__self_attn__q_proj__lora_A__weight=torch.ones(4, 50)),
        "does not fit its base",
    ),
]


@pytest.mark.parametrize(("name", "file", "spoil", "sentence"), SPOILT, ids=lambda value: str(value)[:24])
def test_a_weight_missing_left_over_or_misshapen_is_named(
    copy: Callable[[str], Path], name: str, file: str, spoil: Callable[[Tensors], None], sentence: str
) -> None:
    folder = copy(name)
    rewrite(folder / file, spoil)
    with pytest.raises(BadCheckpoint, match=sentence):
        load_checkpoint(folder, device="cpu", dtype="float32")


def test_a_pickle_that_would_run_code_is_refused(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder, trace = copy("llava-7b-v0"), tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    torch.save({"model.norm.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(BadCheckpoint, match=r"pytorch_model.bin .* more than tensors"):
        load_checkpoint(folder)
    assert not trace.exists()


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    (
        "llava-v1.5-7b",
        {"mm_projector_type": "resnet"},
        r"'resnet'; supported are identity, linear, mlp2x_gelu",
    ),
    ("llava-v1.5-7b", {"model_type": "llava_mpt"}, r"'llava_mpt' language model.*supported are llava_llama"),
    ("llava-v1.5-7b", {"s2": True}, "multi-scale S2"),
    ("llava-v1.5-7b", {"mm_resampler_type": "qformer"}, "'qformer' resampler"),
    ("llava-v1.5-7b", {"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio 'anyres_max_9'; supported"),
    ("llava-v1.6-34b", {"image_grid_pinpoints": "(1x1)"}, "image_grid_pinpoints"),
    ("llava-v1.5-7b", {"hidden_size": "many"}, "does not describe a language model"),
    ("llava-v1.5-7b", {"mm_vision_tower": None}, "names no vision tower"),
    (
        "llava-v1.5-7b",
        {"mm_vision_tower": "openai/clip-vit-large-patch14-336"},
        r"(?s)tower 'openai/clip-vit-large-patch14-336', which is not here; fetch it .*clip-vit-large-patch14-336'",
    ),
]


@pytest.mark.parametrize(("name", "changes", "sentence"), CONFIGS, ids=lambda value: str(value)[:40])
def test_what_is_not_supported_or_missing_is_said(
    copy: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: dict[str, Any],
    sentence: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = copy(name)
    edit(folder / "config.json", **changes)
    with pytest.raises(BadCheckpoint, match=sentence):
        load_checkpoint(folder)


def test_a_tower_put_beside_the_checkpoint_is_found_under_its_last_name(
    copy: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = copy("llava-v1.5-7b")
    edit(folder / "config.json", mm_vision_tower="someone/clip-vit-336")
    same_answer(folder, "llava-v1.5-7b")


def test_a_whole_clip_serves_as_tower(copy: Callable[[str], Path]) -> None:
    folder = copy("llava-v1.5-7b")
    tower = folder.parent / "clip-vit-336"
    inner = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": inner, "text_config": {}}))
    rewrite(
        tower / "model.safetensors",
        add(
            text_model__final_layer_norm__weight=torch.ones(4),
            logit_scale=torch.ones(1),
            vision_model__embeddings__position_ids=torch.arange(26),
        ),
    )
    same_answer(folder, "llava-v1.5-7b")


def test_a_known_towers_shape_needs_no_files_where_its_weights_are_inside() -> None:
    from llava_core.checkpoints.original_config import read_original_config

    config = json.loads((ORIGINALS / "llava-v1.6-34b" / "config.json").read_text())
    config["mm_vision_tower"] = "openai/clip-vit-large-patch14-336"
    config["image_grid_pinpoints"] = "[(336, 672), (672, 336), (672, 672)]"
    read = read_original_config(ORIGINALS / "llava-v1.6-34b", config, tower_inside=True)
    assert (read.vision.image_size, read.vision.patch_size, read.tokens_per_tile) == (336, 14, 576)
    assert read.vision.config.num_attention_heads == 16
    assert read.resolutions == ((336, 672), (672, 336), (672, 672))


@pytest.mark.parametrize("name", ["llava-pretrain-vicuna-7b", "llava-v1.5-7b-lora"])
def test_what_stands_on_a_base_asks_for_it(copy: Callable[[str], Path], name: str) -> None:
    folder = copy(name)
    shutil.rmtree(folder.parent / "vicuna-base")
    with pytest.raises(BadCheckpoint, match="--model-base"):
        load_checkpoint(folder)
    with pytest.raises(BadCheckpoint, match=r"base .* has no weights"):
        load_checkpoint(folder, base=str(folder))


def test_tiles_packed_flat_are_counted_and_encoded_so(copy: Callable[[str], Path]) -> None:
    folder = copy("llava-v1.6-vicuna-7b")
    edit(folder / "config.json", mm_patch_merge_type="flat")
    rewrite(folder / "model.safetensors", drop("model.image_newline"))
    loaded = load_checkpoint(folder, device="cpu", dtype="float32")
    prompt = loaded.prompt([user(IMAGE, "What?")], [picture("big")])
    assert prompt.images[0].image.tokens == 5 * 25
    assert loaded.encode([prompt.images[0].image])[0].shape == (125, 48)
