"""A model over several devices, told without any: by names of one memory (`cpu:0`, `cpu:1`), and by tensors that hold
nothing but their shape and device."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from exactness import greedy, load, picture, reference, token_ids
from torch import nn
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from llava_core.checkpoints.base import Prompt
from llava_core.checkpoints.loaded import Checkpoint
from llava_core.config import BatchLimits
from llava_core.engines.transformers import backends
from llava_core.engines.transformers.attention import KVShape, use_ragged_attention
from llava_core.engines.transformers.attention_cpu import CpuAttention
from llava_core.engines.transformers.attention_padded import PaddedAttention
from llava_core.engines.transformers.backends import choose_backend
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.engines.transformers.probe import trial
from llava_core.engines.transformers.spread import SpreadAttention, layer_devices
from llava_core.engines.transformers.step import Step, Work
from llava_core.errors import BadRequest
from llava_core.types import assistant, user

FIRST, SECOND = torch.device("cpu:0"), torch.device("cpu:1")
MIB = 1 << 20


class Stays(AlignDevicesHook):
    """accelerate's hook, which moves what goes in and out; weights stay where they are."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def dispatch(model: Any, first: str, second: str) -> dict[nn.Module, str]:
    """Hooks as accelerate sets them: the last layer, the norm and the head on the second device."""
    decoder: Any = model.get_decoder()
    parts: dict[nn.Module, str] = dict.fromkeys((decoder.embed_tokens, *decoder.layers), first)
    parts |= dict.fromkeys((decoder.layers[-1], decoder.norm, model.lm_head), second)
    for part, where in parts.items():
        add_hook_to_module(part, Stays(execution_device=where))
    add_hook_to_module(model, Stays(execution_device=first, io_same_device=True, skip_keys="past_key_values"))
    names = {name: parts[module] for name, module in model.named_modules() if module in parts}
    model.hf_device_map = {**names, "model.vision_tower": first}
    return parts


def spread(family: str) -> Checkpoint:
    loaded = load(family)
    dispatch(loaded.model, "cpu:0", "cpu:1")
    return loaded


@pytest.mark.parametrize("backend", ["auto", "padded"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "internvl", "llama"])
async def test_it_answers_as_on_one_device_and_its_probe_passes(family: str, backend: str) -> None:
    loaded = spread(family)
    engine = TransformersEngine(loaded, batch=BatchLimits(kv_bytes=64 * MIB, step_tokens=48), backend=backend)
    try:
        words = ("What is this?", "And how many of them are there, all in all?", "Why?")
        seen = [(picture(1),), (picture(2), picture(3, 64, 32)), ()] if family != "llama" else [(), (), ()]
        asked = [(user(*pictures, text),) for pictures, text in zip(seen, words, strict=True)]
        answers = await asyncio.gather(*(token_ids(engine, greedy(*chat, owner=chat[0].text)) for chat in asked))
        for chat, ids in zip(asked, answers, strict=True):
            assert ids == reference(family, await prompt_of(engine, chat))
        follow = (*asked[0], assistant("Yes."), user("Sure?"))
        assert await token_ids(engine, greedy(*follow)) == reference(family, await prompt_of(engine, follow))
    finally:
        await engine.aclose()


async def prompt_of(engine: TransformersEngine, chat: Any) -> Any:
    return (await engine._prepare(greedy(*chat))).prompt


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "llama"])
def test_what_a_layer_meets_is_on_its_own_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that know only shape and device, where an operation over two devices fails as it does on GPUs."""
    first, second = torch.device("meta"), torch.device("cpu")
    patch: Any = functorch_config.patch  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(backends, "layer_devices", lambda model: (first, second))
    config = load(family).model.config
    with patch(fake_tensor_allow_meta=True), FakeTensorMode(), torch.inference_mode():
        model = (AutoModelForCausalLM if family == "llama" else AutoModelForImageTextToText).from_config(config).eval()
        use_ragged_attention(model)
        for module in model.modules():
            place(module, first)
        for part, where in dispatch(model, "meta", "cpu").items():
            for module in part.modules():
                place(module, torch.device(where))
        backend = choose_backend("padded", model, BatchLimits(kv_bytes=MIB), context_length=64)
        given: list[torch.Tensor] = []
        model.get_decoder().register_forward_hook(lambda _, __, output: given.append(output.last_hidden_state))
        sequence = trial(Prompt(tuple(range(5, 15))))
        sequence.region = backend.allocate(16)
        step = Step(model, backend)
        for count in (5, 4, 1):
            logits = step.run([Work(sequence, count)])
            sequence.computed += count
        assert [hidden.device for hidden in given] == [first] * 3
        assert (logits.device, logits.shape[0]) == (first, 1)


def place(module: nn.Module, device: torch.device) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(parameter.to(device), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))


def test_layers_are_found_where_they_are() -> None:
    model = spread("llava").model
    assert layer_devices(model) == (FIRST, SECOND)
    assert layer_devices(load("llava").model) is None


def test_a_model_that_does_not_fit_is_refused_instead_of_copied_at_every_step() -> None:
    model: Any = load("llava").model
    model.hf_device_map = {"model": 0, "lm_head": "cpu"}
    with pytest.raises(BadRequest, match=r"do not fit into the memory of the GPUs: lm_head .* --quantize nf4"):
        layer_devices(model)


def test_memory_is_shared_out_by_layers_and_the_fullest_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spread("llava").model
    free = {FIRST: 30 * MIB, SECOND: 10 * MIB}
    monkeypatch.setattr(
        backends, "kv_budget", lambda device, limits: limits.kv_bytes or int(free[device] * (limits.kv_share or 0.5))
    )
    chosen = choose_backend("padded", model, BatchLimits(), context_length=4096)
    assert isinstance(chosen, SpreadAttention)
    assert [type(one) for one in chosen.backends] == [PaddedAttention, PaddedAttention]
    assert chosen.bytes_per_token == sum(one.bytes_per_token for one in chosen.backends)
    assert chosen.total_tokens == 5 * MIB // chosen.backends[1].bytes_per_token
    chosen = choose_backend("padded", model, BatchLimits(kv_bytes=8 * MIB), context_length=4096)
    assert chosen.total_tokens == 8 * MIB // chosen.bytes_per_token


SHAPE = KVShape(1, 2, 2, 8)


def padded(tokens: int) -> PaddedAttention:
    return PaddedAttention(SHAPE, kv_bytes=tokens * 128, dtype=torch.float32, device=torch.device("cpu"))


def test_room_is_taken_on_all_devices_or_on_none() -> None:
    small, large = padded(10), padded(20)
    both = SpreadAttention({FIRST: large, SECOND: small}, (FIRST, SECOND, FIRST))
    assert both.total_tokens == 10
    region = both.allocate(6)
    assert region is not None
    assert both.allocate(6) is None
    assert (large._room.free, small._room.free) == (14, 4)
    assert not both.resize(region, 12)
    assert region.tokens == 6
    assert (large._room.free, small._room.free) == (14, 4)
    assert both.resize(region, 8)
    assert both.resize(region, 2)
    assert [part.tokens for part in region.parts] == [2, 2]
    other = both.allocate(8)
    assert other is not None
    both.copy(region, other, 2)
    both.release(region)
    both.release(other)
    assert (large._room.free, small._room.free) == (20, 10)


def test_stores_of_different_kinds_stand_beside_each_other() -> None:
    mixed = SpreadAttention(
        {FIRST: CpuAttention(SHAPE, kv_bytes=1 << 16, context_length=64), SECOND: padded(64)}, (FIRST, SECOND)
    )
    region = mixed.allocate(8)
    assert region is not None
    assert region.tokens == 8
