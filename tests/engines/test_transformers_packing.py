"""Packed weights give the products of the plain ones, and only where they help."""

from __future__ import annotations

import pytest
import torch
from exactness import folder, picture
from torch import nn

from llava_core.checkpoints.load import load_checkpoint
from llava_core.config import BatchLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.engines.transformers.packing import PackedLinear, pack_linears
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
