"""Packed weights give the products of the plain ones, and only where they help."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exactness import folder, picture
from torch import nn

from llava_core.checkpoints.load import load_checkpoint
from llava_core.config import BatchLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.engines.transformers.packing import GatedProduct, PackedLinear, pack_linears
from llava_core.types import Request, Sampling, user

HAS_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this processor has no fast bfloat16 products")


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_a_packed_layer_gives_what_the_plain_one_gives(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias).bfloat16()
    inputs = torch.randn(1, rows, 96, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = linear(inputs)
        model = nn.Sequential(linear)
        assert pack_linears(model) == 1
        assert isinstance(model[0], PackedLinear)
        torch.testing.assert_close(model(inputs), expected, rtol=2e-2, atol=2e-2)


class Attention(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(96, size, bias=bias) for size in (96, 32, 32))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.q_proj(inputs), self.v_proj(inputs), self.k_proj(inputs)), dim=-1)


class FeedForward(nn.Module):
    def __init__(self, activation: nn.Module, halved: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(96, 160, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(160, 96, bias=False)
        self.activation, self.share = activation, 0.5 if halved else 1.0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(inputs) * self.share + (1 - self.share)
        return self.down_proj(self.activation(self.gate_proj(inputs)) * up)


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
def test_queries_keys_and_values_are_one_product_and_never_those_of_other_inputs(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Attention(bias)).bfloat16()
    first, second = (torch.randn(1, 3, 96, dtype=torch.bfloat16) for _ in range(2))
    with torch.inference_mode():
        expected = [model(inputs) for inputs in (first, second)]
        assert pack_linears(model) == 3
        for _ in range(2):
            for inputs, wanted in zip((first, second), expected, strict=True):
                torch.testing.assert_close(model(inputs), wanted, rtol=2e-2, atol=2e-2)
        # Left in the middle, as an encoding that nobody waits for any more.
        attention: Any = model[0]
        attention.q_proj(first)
        torch.testing.assert_close(model(second), expected[1], rtol=2e-2, atol=2e-2)


@needs_bf16
def test_a_gated_layer_is_packed_whole_only_if_it_computes_what_its_names_say() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(1, 5, 96, dtype=torch.bfloat16)
    for layer, whole in (
        (FeedForward(nn.SiLU()), True),
        (FeedForward(nn.GELU()), False),
        (FeedForward(nn.SiLU(), halved=True), False),
    ):
        model = nn.Sequential(layer).bfloat16()
        with torch.inference_mode():
            expected = model(inputs)
            assert pack_linears(model) == 3
            assert isinstance(model[0], GatedProduct) == whole
            torch.testing.assert_close(model(inputs), expected, rtol=5e-2, atol=2e-2)


@needs_bf16
async def test_an_engine_in_bfloat16_answers_with_pictures() -> None:
    loaded = load_checkpoint(folder("llava_next"), device="cpu", dtype="bfloat16")
    engine = TransformersEngine(loaded, batch=BatchLimits(kv_bytes=1 << 26))
    try:
        request = Request("m", (user(picture(1), "What is this?"),), Sampling(temperature=0, max_tokens=8))
        once = [chunk async for chunk in engine.generate(request)]
        assert once[-1].finish_reason is not None
        assert any(isinstance(module, PackedLinear) for module in loaded.model.modules())
    finally:
        await engine.aclose()


def test_float32_weights_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    assert pack_linears(model) == 0
    assert type(model[0]) is nn.Linear


def test_layers_of_other_kinds_stay_as_they_are() -> None:
    class Quantised(nn.Linear):
        """Stands for bitsandbytes' subclasses of Linear."""

    model = nn.Sequential(Quantised(64, 64).bfloat16())
    assert pack_linears(model) == 0
