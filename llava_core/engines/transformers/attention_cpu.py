"""Attention on a CPU: keys and values per request, one SDPA call per request.

Regions are head-major and ask the system for more address space than they need; only pages that are written become
memory, so a chat can grow over its turns without being copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from llava_core.engines.transformers.attention import KVShape, Region, Span

Masks = dict[tuple[int, int, int | None], torch.Tensor]
_SPARE_TOKENS = 4096
"""Address space kept beyond what a request asks for, for the turns that follow."""


def fastest_dtype(weights: torch.dtype) -> torch.dtype:
    """In which numbers keys and values are kept under weights of a kind.

    A processor that multiplies matrices of bfloat16 (AMX) reads half as much and is 1.2 to 2 times as fast for a token,
    2 to 4 times for a chunk (Xeon with 2 cores, 650 to 3,000 tokens); on others attention in half precision is several
    times slower than in float32. Keys computed in bfloat16 lose nothing by staying so.
    """
    multiplies = torch.cpu.get_capabilities().get("amx_bf16", False)
    return weights if weights == torch.bfloat16 and multiplies else torch.float32


@dataclass(eq=False)
class CpuRegion:
    """`store` is (layers, 2, kv heads, capacity, dim)."""

    store: torch.Tensor
    tokens: int

    @property
    def capacity(self) -> int:
        return self.store.shape[3]

    @property
    def address(self) -> int:
        return self.store.data_ptr()


class CpuAttention:
    """The backend for CPUs."""

    def __init__(
        self, shape: KVShape, *, kv_bytes: int, context_length: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self._shape = shape
        self._context = context_length
        self._dtype = dtype
        self.bytes_per_token = 2 * shape.layers * shape.kv_heads * shape.dim * dtype.itemsize
        self.total_tokens = kv_bytes // self.bytes_per_token

    def allocate(self, tokens: int) -> CpuRegion | None:
        capacity = max(tokens, min(self._context, tokens + _SPARE_TOKENS))
        try:
            return CpuRegion(self._map(capacity), tokens)
        except (OSError, ValueError):
            # The system grants no address space it has no memory for; take what is needed and copy later.
            return CpuRegion(self._map(tokens), tokens)

    def resize(self, region: Region, tokens: int) -> bool:
        own = cast(CpuRegion, region)
        if tokens > own.capacity:
            return False
        own.tokens = tokens
        return True

    def copy(self, source: Region, target: Region, tokens: int) -> None:
        cast(CpuRegion, target).store[..., :tokens, :] = cast(CpuRegion, source).store[..., :tokens, :]

    def release(self, region: Region) -> None:
        cast(CpuRegion, region).store = torch.empty(0)

    def keys(self, region: Region, layer: int, tokens: int) -> torch.Tensor:
        return cast(CpuRegion, region).store[layer, 0, :, :tokens]

    def begin(self, spans: Sequence[Span]) -> CpuStep:
        return CpuStep(spans, self._shape, self._dtype)

    def _map(self, capacity: int) -> torch.Tensor:
        shape = (self._shape.layers, 2, self._shape.kv_heads, capacity, self._shape.dim)
        size = self.bytes_per_token * capacity
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            return torch.empty(shape, dtype=self._dtype)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, size, flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # Huge pages would turn the untouched spare room of every head into memory.
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        return torch.frombuffer(memory, dtype=self._dtype).view(shape)


class CpuStep:
    """One pass; masks are made once and serve all layers."""

    def __init__(self, spans: Sequence[Span], shape: KVShape, dtype: torch.dtype) -> None:
        self._spans = spans
        self._dtype = dtype
        self._groups = shape.heads // shape.kv_heads
        self._masks: Masks = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        dtype = query.dtype
        query, key, value = (states.to(self._dtype) for states in (query, key, value))
        _, heads, total, dim = query.shape
        out = query.new_empty(total, heads, dim)
        for span in self._spans:
            new = slice(span.start, span.start + span.count)
            end = span.past + span.count
            keys, values = cast(CpuRegion, span.region).store[layer]
            keys[:, span.past : end] = key[0, :, new]
            values[:, span.past : end] = value[0, :, new]
            first = max(0, end - window) if window is not None and span.count == 1 else 0
            out[new] = self._one(
                query[:, :, new], keys[None, :, first:end], values[None, :, first:end], scaling, window
            )
        return out.to(dtype)[None]

    def _one(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """One request: (1, heads, n, dim) over (1, kv heads, length, dim) -> (n, heads, dim)."""
        _, heads, count, dim = query.shape
        if count == 1:
            # Heads that share keys become rows of one query, so that nothing is expanded.
            grouped = query.view(1, heads // self._groups, self._groups, dim)
            out = F.scaled_dot_product_attention(grouped, keys, values, scale=scaling)
            return out.reshape(1, heads, dim)
        return chunk_attention(query, keys, values, scaling, window, self._masks)


def chunk_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, window: int | None, masks: Masks
) -> torch.Tensor:
    """The last `n` tokens of a request: (1, heads, n, dim) over (1, kv heads, length, dim) -> (n, heads, dim). `masks`
    keeps what was made for other layers."""
    _, heads, count, _ = query.shape
    length = keys.shape[2]
    gqa = heads > keys.shape[1]
    if count == length and (window is None or window >= length):
        out = F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scaling, enable_gqa=gqa)
    else:
        mask = _mask(count, length, window, masks)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=gqa)
    return out[0].transpose(0, 1)


def _mask(count: int, length: int, window: int | None, masks: Masks) -> torch.Tensor:
    """True where a new token may look: (count, length), aligned at the end."""
    known = masks.get((count, length, window))
    if known is None:
        known = torch.ones(count, length, dtype=torch.bool).tril(length - count)
        if window is not None:
            known = known.triu(length - count - window + 1)
        masks[(count, length, window)] = known
    return known
