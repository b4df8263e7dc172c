"""A model is tried before it serves; one that attends otherwise is refused."""

from __future__ import annotations

import pytest
import torch
from exactness import FAMILIES, load
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from llava_core.engines.transformers.attention import KVShape, use_ragged_attention
from llava_core.engines.transformers.attention_cpu import CpuAttention
from llava_core.engines.transformers.probe import check_attention, own_logits, warm_up
from llava_core.errors import BadCheckpoint

SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def backend_of(model: torch.nn.Module) -> CpuAttention:
    return CpuAttention(KVShape.of(model), kv_bytes=1 << 24, context_length=64)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_passes_and_leaves_nothing_behind(
    family: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(family)
    loaded.model.to(dtype)  # pyright: ignore[reportArgumentType]
    own = own_logits(loaded.model)
    use_ragged_attention(loaded.model)
    backend = backend_of(loaded.model)
    check_attention(loaded.model, backend, own)
    warm_up(loaded, backend)
    assert not caplog.records


def test_a_sliding_window_is_honoured() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6, initializer_range=0.3)).eval()
    own = own_logits(model)
    use_ragged_attention(model)
    check_attention(model, backend_of(model), own)


def test_a_model_that_attends_otherwise_is_refused() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SMALL, initializer_range=0.3)).eval()
    own = own_logits(model)
    use_ragged_attention(model)
    with pytest.raises(BadCheckpoint, match="does not attend as packed batches assume"):
        check_attention(model, backend_of(model), own.flip(0))


def test_soft_capped_attention_is_refused_before_anything_is_served() -> None:
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL)).eval()
    own = own_logits(model)
    use_ragged_attention(model)
    with pytest.raises(BadCheckpoint, match="soft-capped"):
        check_attention(model, backend_of(model), own)
