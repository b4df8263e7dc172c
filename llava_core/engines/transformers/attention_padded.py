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
from llava_core.engines.transformers.attention import Span
from llava_core.engines.transformers.transfer import to_device

_LEAST_REACH = 256


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

    def begin(self, spans: Sequence[Span]) -> PaddedStep:
        decoding = [span for span in spans if span.count == 1]
        groups = [decoding] if decoding else []
        groups += [[span] for span in spans if span.count > 1]
        written = [at for span in spans for at in range(_first(span) + span.past, _first(span) + _length(span))]
        parts = [part for group in groups for part in _numbers(group)]
        there, *numbers = to_device(written, *parts, device=self.store.device)
        shapes = [(group[0].count, max(_length(span) for span in group)) for group in groups]
        made = [self._group(numbers[3 * at : 3 * at + 3], *shape) for at, shape in enumerate(shapes)]
        return PaddedStep(self.store, there, made, gqa=self.gqa)

    def reach(self, longest: int) -> int:
        """Keys that a recorded pass reads of each request: few different numbers, so that few passes are recorded."""
        return min(max(_LEAST_REACH, 1 << (longest - 1).bit_length()), self.total_tokens + 1)

    def begin_single(
        self, written: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, reach: int
    ) -> PaddedStep:
        """A pass of one new token per request, told in tensors alone, so that it can be recorded."""
        rows = torch.arange(len(starts), device=starts.device)
        return PaddedStep(self.store, written, [self._group((rows, starts, lengths), 1, reach)], gqa=self.gqa)

    def _group(self, numbers: Sequence[torch.Tensor], count: int, longest: int) -> _Group:
        rows, starts, lengths = numbers
        device = rows.device
        # What lies beyond a request's own keys is masked, but must be in the arena.
        slots = (starts[:, None] + torch.arange(longest, device=device)).clamp(max=self.scratch)
        return _Group(rows[:, None] + torch.arange(count, device=device), slots, lengths[:, None])


class PaddedStep:
    """One pass; masks are made once and serve all layers. What is `written` is where new keys and values go."""

    def __init__(self, store: torch.Tensor, written: torch.Tensor, groups: Sequence[_Group], *, gqa: bool) -> None:
        self._store = store
        self._written = written
        self._groups = groups
        self._gqa = gqa
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


def _first(span: Span) -> int:
    return cast(ArenaRegion, span.region).start


def _length(span: Span) -> int:
    return span.past + span.count


def _numbers(spans: Sequence[Span]) -> tuple[list[int], list[int], list[int]]:
    """Where requests begin in the row and in the arena, and their lengths with what is new."""
    return [span.start for span in spans], [_first(span) for span in spans], [_length(span) for span in spans]
