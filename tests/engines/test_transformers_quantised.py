"""Language models in 8 and 4 bits behind the packed engine: smaller, whole where it matters, and serving many."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
import torch
from exactness import folder, greedy, load, picture, token_ids
from torch import nn

from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.loaded import Checkpoint
from llava_core.checkpoints.precision import PACKAGES, QUANTIZE, Quantize
from llava_core.config import BatchLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.types import user
from tests.topology import Topology

LIMITS = BatchLimits(kv_bytes=1 << 26, step_tokens=48)


def quantised(family: str, kind: Quantize, dtype: str = "float32") -> Checkpoint:
    pytest.importorskip(PACKAGES[kind].name)
    return load_checkpoint(folder(family), device="cpu", dtype=dtype, quantize=kind)


def stored_bytes(tensor: torch.Tensor) -> int:
    """What the tensor holds in memory; torchao's are made of others."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
    return sum(stored_bytes(getattr(tensor, name)) for name in names)


def layer_bytes(loaded: Checkpoint) -> int:
    language: Any = loaded.model.get_submodule("model.language_model")
    return sum(stored_bytes(module.weight) for module in language.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
@pytest.mark.parametrize("kind", QUANTIZE)
async def test_people_with_pictures_are_answered_at_once_as_each_alone(family: str, kind: Quantize) -> None:
    loaded = quantised(family, kind)
    assert layer_bytes(loaded) < layer_bytes(load(family)) * (0.3 if PACKAGES[kind].bits == 8 else 0.2)
    parts = ("model.vision_tower", "model.multi_modal_projector", "model.visual", "lm_head")
    whole = [
        module
        for name, module in loaded.model.named_modules()
        if name.startswith(parts) and isinstance(module, nn.Linear)
    ]
    assert whole
    assert {(type(module), module.weight.dtype) for module in whole} == {(nn.Linear, torch.float32)}
    engine = TransformersEngine(loaded, batch=LIMITS)
    try:
        requests = [
            greedy(user(picture(seed, 40 + 8 * seed), f"What is picture {seed}?"), owner=str(seed)) for seed in range(5)
        ]
        together = await asyncio.gather(*(token_ids(engine, request) for request in requests))
        assert [len(ids) for ids in together] == [12] * 5
        alone = [await token_ids(engine, request) for request in requests]
    finally:
        await engine.aclose()
    if kind != "int8":
        # Eight-bit products of bitsandbytes also quantise the inputs, by the outliers of whichever rows are computed.
        assert together == alone


@pytest.mark.parametrize("kind", QUANTIZE)
async def test_half_precision_beside_quantised_layers_is_packed_and_serves(kind: Quantize) -> None:
    engine = TransformersEngine(quantised("llava", kind, "bfloat16"), batch=LIMITS)
    try:
        assert engine.info.dtype == f"{kind} (bfloat16)"
        assert len(await token_ids(engine, greedy(user(picture(1), "What is this?")))) == 12
    finally:
        await engine.aclose()


def test_a_worker_quantises_and_says_what_it_picked(topology: Topology) -> None:
    pytest.importorskip("bitsandbytes")
    extra = ("--load-4bit", "--device", "cpu", "--kv-memory", "64MiB", "--max-running", "3", "--threads", "1")
    worker = topology.worker("small", model_path=folder("llava"), register=False, extra=extra)
    client = openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0, timeout=60)
    asked: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": picture(1).url}},
                {"type": "text", "text": "What is this?"},
            ],
        }
    ]
    answer = client.chat.completions.create(model="small", messages=asked, max_tokens=8, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    log = worker.log_text()
    assert "small runs on cpu in nf4 (" in log
    assert "with 1 thread," in log
    assert "may take 64.0 MiB" in log
    assert "up to 3 requests run at once" in log
