"""Attention on any device: requests gathered from the arena, padded to one length, one SDPA with a mask.

For devices without a ragged kernel (MPS and others); requests that decode go together, prefill chunks one by one, so
that no short request pays for a long chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from llava_core.engines.transformers.arena import Arena, ArenaRegion
from llava_core.engines.transformers.attention import KVShape, Span


@dataclass(frozen=True)
class _Group:
    """Requests with equally many new tokens: where these are in the row, and where their keys are in the arena."""

    rows: torch.Tensor
    """(requests, count)"""
    slots: torch.Tensor
    """(requests, longest)"""
    lengths: torch.Tensor
    """(requests, 1)"""


class PaddedAttention(Arena):
    """The backend for devices without a better one."""

    def __init__(self, shape: KVShape, *, kv_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, kv_bytes=kv_bytes, dtype=dtype, device=device)
        self._gqa = shape.heads != shape.kv_heads

    def begin(self, spans: Sequence[Span]) -> PaddedStep:
        return PaddedStep(self.store, spans, gqa=self._gqa)


class PaddedStep:
    """One pass; indices and masks are made once and serve all layers."""

    def __init__(self, store: torch.Tensor, spans: Sequence[Span], *, gqa: bool) -> None:
        self._store = store
        self._gqa = gqa
        device = store.device
        self._written = torch.cat([_slots(span, span.past, span.past + span.count) for span in spans]).to(device)
        decoding = [span for span in spans if span.count == 1]
        groups = [decoding] if decoding else []
        groups += [[span] for span in spans if span.count > 1]
        self._groups = [_group(group, device) for group in groups]
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        keys, values = self._store[layer]
        keys[self._written] = key[0].transpose(0, 1).to(keys.dtype)
        values[self._written] = value[0].transpose(0, 1).to(values.dtype)
        packed = query[0].transpose(0, 1)  # (T, heads, dim)
        out = torch.empty_like(packed)
        for index, group in enumerate(self._groups):
            attended = F.scaled_dot_product_attention(
                packed[group.rows].transpose(1, 2),  # (requests, heads, count, dim)
                keys[group.slots].transpose(1, 2).to(packed.dtype),
                values[group.slots].transpose(1, 2).to(packed.dtype),
                attn_mask=self._mask(index, window),
                scale=scaling,
                enable_gqa=self._gqa,
            )
            out[group.rows] = attended.transpose(1, 2)
        return out[None]

    def _mask(self, index: int, window: int | None) -> torch.Tensor:
        """True where a new token may look: (requests, 1, count, longest)."""
        known = self._masks.get((index, window))
        if known is None:
            group = self._groups[index]
            count, longest = group.rows.shape[1], group.slots.shape[1]
            device = group.rows.device
            seen = group.lengths - count + torch.arange(count, device=device)  # a new token's own position
            position = torch.arange(longest, device=device)
            known = position <= seen[..., None]
            if window is not None:
                known &= position > seen[..., None] - window
            known = self._masks[(index, window)] = known[:, None]
        return known


def _slots(span: Span, first: int, end: int) -> torch.Tensor:
    start = cast(ArenaRegion, span.region).start
    return torch.arange(start + first, start + end)


def _group(spans: Sequence[Span], device: torch.device) -> _Group:
    rows = torch.stack([torch.arange(span.start, span.start + span.count) for span in spans])
    longest = max(span.past + span.count for span in spans)
    slots = torch.zeros(len(spans), longest, dtype=torch.long)
    for index, span in enumerate(spans):
        length = span.past + span.count
        slots[index, :length] = _slots(span, 0, length)
    lengths = torch.tensor([[span.past + span.count] for span in spans])
    return _Group(rows.to(device), slots.to(device), lengths.to(device))
