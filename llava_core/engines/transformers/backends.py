"""Chooses the attention backend for the device a model is on, and how many requests it may run at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from llava_core.checkpoints.memory import in_words
from llava_core.config import BatchLimits
from llava_core.engines.transformers.attention import AttentionBackend, KVShape
from llava_core.engines.transformers.attention_cpu import CpuAttention, fastest_dtype
from llava_core.engines.transformers.attention_cuda import VarlenAttention, varlen_serves
from llava_core.engines.transformers.attention_padded import PaddedAttention
from llava_core.engines.transformers.memory import kv_budget
from llava_core.engines.transformers.spread import SpreadAttention, join_ends, layer_devices
from llava_core.types import ModelInfo

_USUAL_CHAT = 1024
"""Tokens; what most chats with a picture stay below."""
_LEAST_RUNNING = 8
_MOST_RUNNING = {"cuda": 256, "cpu": 16}
_NAMES = {
    CpuAttention: "one SDPA call a request",
    VarlenAttention: "ragged FlashAttention",
    PaddedAttention: "padded SDPA",
}


def choose_backend(
    wanted: str, model: PreTrainedModel, limits: BatchLimits, *, context_length: int, by_kernel: bool = False
) -> AttentionBackend:
    """`wanted` is "auto", or "padded" for the one that runs anywhere. A model over several devices is prepared for it.
    `by_kernel` where the kernel attends, which reads the weights' own bfloat16, over what the backend only keeps.

    BadRequest where not all of it is on a device that computes, or memory was asked for that is not there."""
    shape, dtype = KVShape.of(model), model.dtype
    layers = layer_devices(model)
    if layers is None:
        kv_bytes = kv_budget(model.device, limits)
        if by_kernel:
            return CpuAttention(shape, kv_bytes=kv_bytes, context_length=context_length, dtype=dtype)
        return _backend(wanted, shape, kv_bytes, dtype, model.device, context_length)
    join_ends(model)
    shares = {device: replace(shape, layers=layers.count(device)) for device in dict.fromkeys(layers)}
    budgets = _budgets(shares, limits)
    backends = {
        device: _backend(wanted, share, budgets[device], dtype, device, context_length)
        for device, share in shares.items()
    }
    return SpreadAttention(backends, layers)


def _backend(
    wanted: str, shape: KVShape, kv_bytes: int, dtype: torch.dtype, device: torch.device, context_length: int
) -> AttentionBackend:
    if wanted == "auto" and device.type == "cpu":
        return CpuAttention(shape, kv_bytes=kv_bytes, context_length=context_length, dtype=fastest_dtype(dtype))
    if wanted == "auto" and varlen_serves(dtype, device, shape):
        return VarlenAttention(shape, kv_bytes=kv_bytes, dtype=dtype, device=device)
    return PaddedAttention(shape, kv_bytes=kv_bytes, dtype=dtype, device=device)


def _budgets(shares: Mapping[torch.device, KVShape], limits: BatchLimits) -> dict[torch.device, int]:
    """Bytes on each device for as many tokens as the one with the least room for its layers holds."""
    layers = {device: shape.layers for device, shape in shares.items()}
    if limits.kv_bytes is None:
        per_layer = min(kv_budget(device, limits) // count for device, count in layers.items())
    else:
        per_layer = limits.kv_bytes // sum(layers.values())
    return {device: kv_budget(device, replace(limits, kv_bytes=per_layer * count)) for device, count in layers.items()}


def running_at_once(device: str, total_tokens: int, context_length: int) -> int:
    """How many requests share the device: as many usual chats as its memory holds, within what it computes well.

    Each still waits for room of its own, so that a few long chats run with fewer beside them.
    """
    chats = total_tokens // max(1, min(_USUAL_CHAT, context_length))
    return max(_LEAST_RUNNING, min(chats // 8 * 8, _MOST_RUNNING.get(device, 32)))


def in_a_sentence(info: ModelInfo, backend: AttentionBackend, running: int, *, by_kernel: bool) -> str:
    """What was picked, for the log; `by_kernel` where the kernel attends over what the backend only keeps."""
    count = torch.get_num_threads()
    threads = f" with {count} thread{'s' if count > 1 else ''}" if info.device == "cpu" else ""
    kinds = [type(one) for one in backend.backends] if isinstance(backend, SpreadAttention) else [type(backend)]
    attention = "the kernel's own" if by_kernel else " and ".join(_NAMES[kind] for kind in dict.fromkeys(kinds))
    size = in_words(backend.total_tokens * backend.bytes_per_token)
    return (
        f"{info.name} runs on {info.device} in {info.dtype}{threads}, attention is {attention}, keys and "
        f"values may take {size} ({backend.total_tokens} tokens), and up to {running} requests run at once"
    )
