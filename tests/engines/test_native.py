"""The kernel that computes a decoder's layers gives what the model itself gives, whatever the chunks."""

from __future__ import annotations

import ctypes
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from llava_core.checkpoints.base import PlacedImage, PreparedImage, Prompt
from llava_core.engines.transformers.attention import KVShape, use_ragged_attention
from llava_core.engines.transformers.attention_cpu import CpuAttention
from llava_core.engines.transformers.native import build
from llava_core.engines.transformers.native.build import NotBuilt, kernel
from llava_core.engines.transformers.native.take_over import take_over
from llava_core.engines.transformers.native.tower import take_tower
from llava_core.engines.transformers.native.weights import unsuited
from llava_core.engines.transformers.probe import trial as sequence_of
from llava_core.engines.transformers.sequence import Sequence
from llava_core.engines.transformers.step import Step, Work
from llava_core.errors import BadCheckpoint

SHAPE: dict[str, Any] = {
    "vocab_size": 133,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.15,
    "max_position_embeddings": 256,
}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=9)),
    "biases": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "normed heads": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
}
IDS = tuple((7 * index * index + 3) % 131 for index in range(60))


def built() -> str:
    try:
        kernel()
    except NotBuilt as reason:
        return str(reason)
    return ""


needs_kernel = pytest.mark.skipif(bool(built()), reason=f"the kernel cannot be built here: {built()}")


@pytest.fixture(params=["tiles", "vectors"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The kernel as it multiplies in tiles, where the processor has some, and in vectors."""
    chosen = kernel(tiles=request.param == "tiles")
    if chosen.has_tiles() != (request.param == "tiles"):
        pytest.skip("the processor has no tiles")
    monkeypatch.setattr("llava_core.engines.transformers.native.take_over.kernel", lambda: chosen)
    return chosen


def make(name: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name or "bias" in parameter_name:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in parameter_name else 0.0, 0.2)
    # Both precisions hold the same numbers, so that only the computing differs.
    return model.bfloat16().to(dtype)


class Beside:
    """Requests of one model, computed by the kernel."""

    def __init__(self, model: PreTrainedModel) -> None:
        taken = take_over(model, "auto")
        assert taken is not None
        use_ragged_attention(model)
        self.backend = CpuAttention(KVShape.of(model), kv_bytes=1 << 26, context_length=256, dtype=torch.bfloat16)
        self.step = taken.step()

    def begin(self, prompt: Prompt) -> Sequence:
        sequence = sequence_of(prompt)
        sequence.region = self.backend.allocate(len(prompt.ids) + 8)
        return sequence

    def run(self, *works: tuple[Sequence, int]) -> torch.Tensor:
        with torch.inference_mode():
            logits = self.step.run([Work(sequence, count) for sequence, count in works])
        for sequence, count in works:
            sequence.computed += count
        return logits


def likeness(given: torch.Tensor, expected: torch.Tensor) -> float:
    return float(F.cosine_similarity(given.float(), expected.float(), dim=-1).min())


@needs_kernel
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunks", [(60,), (33, 1, 4, 21, 1), (1,) * 60, (7, 50, 3)], ids=str)
def test_chunks_of_any_size_give_the_models_own_logits(name: str, chunks: tuple[int, ...]) -> None:
    exact = make(name, torch.float32)
    with torch.inference_mode():
        expected = exact(input_ids=torch.tensor([IDS])).logits[0, -1]
        by_torch = make(name)(input_ids=torch.tensor([IDS])).logits[0, -1]
    beside = Beside(make(name))
    sequence = beside.begin(Prompt(IDS))
    logits = torch.empty(0)
    for count in chunks:
        logits = beside.run((sequence, count))
    assert logits.shape == (1, SHAPE["vocab_size"])
    assert logits.dtype == torch.float32
    assert likeness(logits[0], expected) > min(0.999, likeness(by_torch, expected) - 0.002)


@needs_kernel
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("chunks", [(200,), (70, 128, 2), (5, 190, 5), (199, 1)], ids=str)
def test_a_long_prompt_is_attended_to_in_blocks(window: int | None, chunks: tuple[int, ...]) -> None:
    ids = tuple((11 * index * index + index) % 131 for index in range(200))

    def make_long(dtype: torch.dtype) -> PreTrainedModel:
        torch.manual_seed(5)
        return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=window)).eval().bfloat16().to(dtype)

    with torch.inference_mode():
        expected = make_long(torch.float32)(input_ids=torch.tensor([ids])).logits[0, -1]
        by_torch = make_long(torch.bfloat16)(input_ids=torch.tensor([ids])).logits[0, -1]
    beside = Beside(make_long(torch.bfloat16))
    sequence = beside.begin(Prompt(ids))
    logits = torch.empty(0)
    for count in chunks:
        logits = beside.run((sequence, count))
    assert likeness(logits[0], expected) > min(0.999, likeness(by_torch, expected) - 0.002)


@needs_kernel
def test_requests_side_by_side_do_not_see_each_other() -> None:
    alone = []
    prompts = [Prompt(IDS[start : start + length]) for start, length in ((0, 5), (9, 40), (3, 17), (20, 1))]
    for prompt in prompts:
        beside = Beside(make("llama"))
        alone.append(beside.run((beside.begin(prompt), len(prompt.ids)))[0])
    beside = Beside(make("llama"))
    begun = [beside.begin(prompt) for prompt in prompts]
    beside.run(*((each, len(each.ids) - 1) for each in begun if len(each.ids) > 1))
    together = beside.run(*((each, 1) for each in begun))
    assert likeness(together, torch.stack(alone)) > 0.999


@needs_kernel
def test_a_pictures_rows_stand_in_place_of_their_placeholders() -> None:
    torch.manual_seed(1)
    rows = torch.randn(20, SHAPE["hidden_size"]).bfloat16()
    image = PreparedImage("picture", {}, 20)
    prompt = Prompt(IDS[:6] + (131,) * 20 + IDS[6:20], (PlacedImage(6, image),))
    model = make("llama", torch.float32)
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(torch.tensor([prompt.ids])).clone()
        embedded[0, 6:26] = rows.float()
        expected = model(inputs_embeds=embedded).logits[0, -1]
    beside = Beside(make("llama"))
    sequence = beside.begin(prompt)
    sequence.features = {"picture": rows}
    beside.run((sequence, 11))
    beside.run((sequence, 9))
    assert likeness(beside.run((sequence, 20))[0], expected) > 0.998


@needs_kernel
@pytest.mark.parametrize("pictures", [1, 3])
def test_a_clip_tower_gives_its_own_hidden_states_layer_by_layer(library: ctypes.CDLL, pictures: int) -> None:
    def make_tower(dtype: torch.dtype) -> CLIPVisionModel:
        torch.manual_seed(2)
        sides = {"image_size": 56, "patch_size": 8, "hidden_size": 64, "intermediate_size": 96}
        config = CLIPVisionConfig(**sides, num_hidden_layers=3, num_attention_heads=2, initializer_range=0.2)
        return CLIPVisionModel(config).eval().bfloat16().to(dtype)

    pixels = torch.randn(pictures, 3, 56, 56, generator=torch.Generator().manual_seed(4)).bfloat16()
    tower = make_tower(torch.bfloat16)
    assert take_tower(tower, library) == 3
    with torch.inference_mode():
        expected = make_tower(torch.float32)(pixels.float(), output_hidden_states=True).hidden_states
        found = tower(pixels, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 4
    assert [likeness(one, other) > 0.998 for one, other in zip(found, expected, strict=True)] == [True] * 4


@needs_kernel
def test_a_tower_whose_layers_do_something_else_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CLIPVisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
    tower = CLIPVisionModel(config).bfloat16()
    monkeypatch.setattr(CLIPEncoderLayer, "forward", lambda self, states, mask: -states)
    with pytest.raises(BadCheckpoint, match="--kernel off"):
        take_tower(tower, kernel())


@needs_kernel
def test_a_tower_with_another_activation_keeps_its_own_layers() -> None:
    config = CLIPVisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
    config.hidden_act = "gelu"
    tower = CLIPVisionModel(config).bfloat16()
    assert take_tower(tower, kernel()) == 0
    assert all(parameter.numel() for parameter in tower.parameters())


@needs_kernel
def test_guessed_rows_each_get_their_logits() -> None:
    beside = Beside(make("llama"))
    one = beside.begin(Prompt(IDS[:30]))
    beside.run((one, 29))
    with torch.inference_mode():
        guessed = beside.step.run([Work(one, 1, IDS[30:32])])
    for row, length in enumerate((30, 31, 32)):
        alone = beside.begin(Prompt(IDS[:length]))
        assert likeness(guessed[row], beside.run((alone, length))[0]) > 0.999


@needs_kernel
def test_the_models_own_weights_are_given_up() -> None:
    model = make("tied")
    assert take_over(model, "auto") is not None
    left = {name for name, parameter in model.named_parameters() if parameter.ndim == 2 and parameter.numel()}
    assert left == {"model.embed_tokens.weight"}


def test_what_the_kernel_cannot_compute_stays_with_torch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = make("llama", torch.float32)
    assert take_over(model, "auto") is None
    assert "it runs in float32" in caplog.text
    odd = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"hidden_size": 40}))).bfloat16()
    assert "multiples of 32" in unsuited(odd)
    gelu = LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="gelu")).bfloat16()
    assert "gelu" in unsuited(gelu)


def test_it_can_be_switched_off() -> None:
    model = make("llama")
    assert take_over(model, "off") is None
    assert all(parameter.numel() for parameter in model.parameters())


@needs_kernel
def test_without_a_compiler_the_model_runs_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("LLAVA_SERVE_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    build.kernel.cache_clear()
    try:
        model = make("llama")
        assert take_over(model, "auto") is None
    finally:
        build.kernel.cache_clear()
    assert "no C compiler" in caplog.text
    use_ragged_attention(model)
    backend = CpuAttention(KVShape.of(model), kv_bytes=1 << 26, context_length=256, dtype=torch.bfloat16)
    sequence = sequence_of(Prompt(IDS))
    sequence.region = backend.allocate(64)
    with torch.inference_mode():
        assert Step(model, backend).run([Work(sequence, 60)]).shape == (1, SHAPE["vocab_size"])


@needs_kernel
def test_a_cache_that_cannot_be_written_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAVA_SERVE_CACHE", str(tmp_path / "file"))
    build.kernel.cache_clear()
    try:
        with pytest.raises(NotBuilt, match="cannot be kept"):
            kernel()
    finally:
        build.kernel.cache_clear()


@needs_kernel
def test_a_compiler_that_fails_is_named_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("LLAVA_SERVE_CACHE", str(tmp_path / "cache"))
    build.kernel.cache_clear()
    try:
        with pytest.raises(NotBuilt, match="no such flag"):
            kernel()
    finally:
        build.kernel.cache_clear()
    assert not list((tmp_path / "cache" / "native").iterdir())
