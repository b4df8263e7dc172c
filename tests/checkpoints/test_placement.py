"""Device, precision and memory: what is chosen, what is refused, what is counted."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaNextConfig

from llava_core.checkpoints import placement
from llava_core.checkpoints.describe import split_parts
from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.memory import GIB, in_words, kv_shape, weight_bytes
from llava_core.checkpoints.placement import Wish, place
from llava_core.checkpoints.precision import Quantize, one_quantize
from llava_core.checkpoints.tokens import context_length
from llava_core.errors import BadRequest, MissingDependency
from llava_core.machine import Memory
from llava_core.types import user
from tests.checkpoints.originals import IMAGE, ORIGINALS, greedy, picture


@functools.cache
def llava_1_5_7b() -> Any:
    with torch.device("meta"):
        return LlavaForConditionalGeneration(LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064}))


def test_a_cpu_without_bfloat16_computes_in_float32_where_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "fast_bfloat16", lambda: False)
    monkeypatch.setattr(placement, "memory_of_machine", lambda: Memory(64 * GIB, 64 * GIB))
    assert place(Wish("cpu"), llava_1_5_7b()).dtype == torch.float32
    monkeypatch.setattr(placement, "memory_of_machine", lambda: Memory(64 * GIB, 16 * GIB))
    assert place(Wish("cpu"), llava_1_5_7b()).dtype == torch.bfloat16
    assert place(Wish("cpu", quantize="nf4"), llava_1_5_7b()).dtype == torch.float32
    assert place(Wish("cpu", dtype="float16"), llava_1_5_7b()).dtype == torch.float16


def test_a_cpu_with_bfloat16_takes_it_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "fast_bfloat16", lambda: True)
    monkeypatch.setattr(placement, "memory_of_machine", lambda: Memory(64 * GIB, 64 * GIB))
    assert place(Wish("cpu"), llava_1_5_7b()).dtype == torch.bfloat16
    assert place(Wish("cpu", dtype="float32"), llava_1_5_7b()).dtype == torch.float32


@pytest.mark.parametrize(
    ("known", "fast"),
    [
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_bw": True, "avx512_bf16": False}, False),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_emulated_bfloat16_does_not_count(monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], fast: bool) -> None:
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this torch has no bfloat16 on this processor")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert placement.fast_bfloat16() is fast


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (Wish("cuda:99"), "'cuda:99' is not here: torch sees"),
        (Wish("warp"), "no kind of device called 'warp'"),
        (Wish("cpu", "float8"), "no dtype 'float8'; choose auto, float32"),
    ],
)
def test_a_device_or_dtype_that_is_not_there_is_named(wish: Wish, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        place(wish, nn.Linear(2, 2))


def test_a_model_too_large_for_one_gpu_goes_over_all_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(total_memory=16 * GIB)
    for name, answer in (("is_available", True), ("device_count", 2), ("is_bf16_supported", True)):
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    chosen = place(Wish(), llava_1_5_7b())
    assert (chosen.spread, chosen.load_arguments()["device_map"]) == (True, "auto")
    named = place(Wish("cuda:1"), llava_1_5_7b())
    assert (named.spread, named.load_arguments()["device_map"]) == (False, {"": torch.device("cuda", 1)})
    assert not place(Wish(quantize="nf4"), llava_1_5_7b()).spread
    gpu.total_memory = 24 * GIB
    assert not place(Wish(), llava_1_5_7b()).spread


def test_llava_1_5_7b_needs_what_it_is_known_to_need() -> None:
    parts = split_parts(llava_1_5_7b())
    assert sum(part.weights for part in parts) == pytest.approx(7.06e9, rel=0.01)
    assert weight_bytes(parts, 16) / GIB == pytest.approx(13.2, abs=0.1)
    assert 7 < weight_bytes(parts, 8) / GIB < 8
    assert 4 < weight_bytes(parts, 4) / GIB < 5
    assert kv_shape(llava_1_5_7b().config.text_config).bytes_per_token() == GIB // 2048
    assert in_words(13.2 * GIB) == "13.2 GiB"


@pytest.mark.parametrize(
    ("text", "config", "tokens"),
    [
        ({"max_position_embeddings": 4096}, {}, 4096),
        ({"max_position_embeddings": 4096}, {"tokenizer_model_max_length": 2048}, 2048),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, {}, 4096),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            {},
            131072,
        ),
        (
            {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            {},
            8192,
        ),
        ({"max_position_embeddings": 32768, "sliding_window": 4096}, {}, 4096),
        ({"max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False}, {}, 32768),
        (
            {
                "max_position_embeddings": 8192,
                "sliding_window": 512,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            {},
            8192,
        ),
        ({"max_position_embeddings": 32768, "sliding_window": None}, {"tokenizer_model_max_length": None}, 32768),
        ({}, {}, 2048),
    ],
)
def test_how_long_a_chat_may_be(text: dict[str, Any], config: dict[str, Any], tokens: int) -> None:
    assert context_length(SimpleNamespace(**text), config) == tokens


def linears(model: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            weight = type(module.weight).__name__
            kind = f"Linear of {weight}" if weight == "Int8Tensor" else type(module).__name__
            found.setdefault(kind, set()).add(".".join(name.split(".")[:2]))
    return found


@pytest.mark.parametrize(
    ("quantize", "kind", "package"),
    [
        ("nf4", "Linear4bit", "bitsandbytes"),
        ("int8", "Linear8bitLt", "bitsandbytes"),
        ("int8-torchao", "Linear of Int8Tensor", "torchao"),
    ],
)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_only_the_language_model_is_shrunk(
    tiny: dict[str, Path], family: str, quantize: Quantize, kind: str, package: str
) -> None:
    pytest.importorskip(package)
    loaded = load_checkpoint(tiny[family], device="cpu", dtype="float32", quantize=quantize)
    assert linears(loaded.model)[kind] == {"model.language_model"}
    assert "model.language_model" not in linears(loaded.model)["Linear"]
    assert loaded.info.dtype == f"{quantize} (float32)"
    prompt = loaded.prompt([user(IMAGE, "What?")], [picture("odd")])
    assert loaded.encode([prompt.images[0].image])[0].shape[0] == prompt.images[0].image.tokens
    if family == "llava":
        assert len(greedy(loaded, prompt, 4)[1]) == 4


def test_an_adapter_is_merged_before_its_base_is_shrunk() -> None:
    pytest.importorskip("bitsandbytes")
    name = "llava-v1.5-7b-lora"
    loaded = load_checkpoint(ORIGINALS / name, device="cpu", quantize="int8")
    assert linears(loaded.model)["Linear8bitLt"] == {"model.language_model"}
    whole: Any = load_checkpoint(ORIGINALS / name, device="cpu", dtype="float32").model
    shrunk: Any = loaded.model
    layer = shrunk.model.language_model.layers[0].self_attn.q_proj
    restored = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    assert torch.allclose(restored, whole.model.language_model.layers[0].self_attn.q_proj.weight, atol=0.01)


def test_widths_a_cpu_cannot_pack_in_four_bits_are_refused_at_once() -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(BadRequest, match=r"cannot be loaded in 4 bits on a CPU: .*q_proj is 48 by 48"):
        load_checkpoint(ORIGINALS / "llava-v1.5-7b", device="cpu", quantize="nf4")


def test_one_quantisation_may_be_asked_for_in_two_ways_but_not_two_at_once() -> None:
    assert one_quantize(None) is None
    assert one_quantize("nf4", load_4bit=True) == "nf4"
    assert one_quantize(None, load_8bit=True) == "int8"
    with pytest.raises(BadRequest, match="--load-4bit and --load-8bit exclude each other"):
        one_quantize(None, load_4bit=True, load_8bit=True)
    with pytest.raises(BadRequest, match="--quantize int8-torchao and --load-8bit exclude"):
        one_quantize("int8-torchao", load_8bit=True)
    with pytest.raises(BadRequest, match="no quantisation 'int3'; choose int8, nf4, int8-torchao"):
        one_quantize("int3")


@pytest.mark.parametrize(("quantize", "package"), [("int8", "bitsandbytes"), ("int8-torchao", "torchao")])
def test_without_the_package_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Path], quantize: Quantize, package: str
) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=rf"pip install {package}=="):
        load_checkpoint(tiny["llava"], device="cpu", quantize=quantize)


def test_a_device_that_cannot_quantise_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(BadRequest, match="int8 does not run on mps; leave the quantisation away or use --device cpu"):
        place(Wish("mps", quantize="int8"), nn.Linear(2, 2))


def on_a_mac(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_auto_takes_cuda_before_mps_and_mps_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_mac(monkeypatch, cuda=True)
    assert place(Wish(), nn.Linear(2, 2)).device == torch.device("cuda", 0)
    on_a_mac(monkeypatch)
    assert place(Wish(), nn.Linear(2, 2)).device == torch.device("mps")
    assert place(Wish("cpu"), nn.Linear(2, 2)).device == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert place(Wish(), nn.Linear(2, 2)).device == torch.device("cpu")


def test_auto_takes_the_cpu_for_what_mps_cannot_quantise(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_a_mac(monkeypatch)
    assert place(Wish(quantize="int8-torchao"), nn.Linear(2, 2)).device == torch.device("cpu")
    assert "int8-torchao does not run on mps; the model goes on the CPU" in caplog.text


def test_mps_computes_in_float32_where_that_fits_and_in_float16_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_mac(monkeypatch)
    monkeypatch.setattr(placement, "memory_of_machine", lambda: Memory(64 * GIB, 48 * GIB))
    assert place(Wish(), llava_1_5_7b(), saved_dtype="bfloat16").dtype == torch.float32
    assert place(Wish(), llava_1_5_7b(), saved_dtype="float16").dtype == torch.float16
    assert place(Wish(dtype="bfloat16"), llava_1_5_7b()).dtype == torch.bfloat16
    monkeypatch.setattr(placement, "memory_of_machine", lambda: Memory(16 * GIB, 12 * GIB))
    assert place(Wish(), llava_1_5_7b(), saved_dtype="bfloat16").dtype == torch.float16


def test_a_context_stretched_in_a_real_config_is_read() -> None:
    config = LlavaNextConfig(
        text_config={"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 32768}
    )
    assert context_length(config.text_config, {"tokenizer_model_max_length": 4096}) == 4096
