"""Chooses the attention backend for the device a model is on."""

from __future__ import annotations

import logging

from transformers import PreTrainedModel

from llava_core.config import BatchLimits
from llava_core.engines.transformers.attention import AttentionBackend, KVShape
from llava_core.engines.transformers.attention_cpu import CpuAttention
from llava_core.engines.transformers.attention_cuda import VarlenAttention, varlen_serves
from llava_core.engines.transformers.attention_padded import PaddedAttention
from llava_core.engines.transformers.memory import kv_budget

log = logging.getLogger(__name__)


def choose_backend(
    wanted: str, model: PreTrainedModel, limits: BatchLimits, *, context_length: int
) -> AttentionBackend:
    """`wanted` is "auto", or "padded" for the one that runs anywhere. Says what it picked."""
    device, dtype = model.device, model.dtype
    shape = KVShape.of(model)
    kv_bytes = kv_budget(device, limits.kv_bytes)
    backend: AttentionBackend
    if wanted == "auto" and device.type == "cpu":
        backend = CpuAttention(shape, kv_bytes=kv_bytes, context_length=context_length)
    elif wanted == "auto" and varlen_serves(dtype, device, shape):
        backend = VarlenAttention(shape, kv_bytes=kv_bytes, dtype=dtype, device=device)
    else:
        backend = PaddedAttention(shape, kv_bytes=kv_bytes, dtype=dtype, device=device)
    log.info(
        "keys and values: %s on %s, room for %d tokens (%.1f GiB)",
        type(backend).__name__,
        device,
        backend.total_tokens,
        backend.total_tokens * backend.bytes_per_token / 2**30,
    )
    return backend
