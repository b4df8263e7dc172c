"""Attention on CUDA: one ragged FlashAttention call per layer over regions of the arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from llava_core.engines.transformers.arena import Arena, ArenaRegion
from llava_core.engines.transformers.attention import KVShape, Span
from llava_core.engines.transformers.transfer import to_device


def varlen_serves(dtype: torch.dtype, device: torch.device, shape: KVShape) -> bool:
    """Whether torch's ragged kernel takes this model: half precision on Ampere or newer, head size up to 256."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and shape.dim <= 256 and shape.dim % 8 == 0


class VarlenAttention(Arena):
    """The backend for CUDA cards with FlashAttention in torch."""

    def begin(self, spans: Sequence[Span]) -> VarlenStep:
        starts = [cast(ArenaRegion, span.region).start for span in spans]
        lengths = [span.past + span.count for span in spans]
        written: list[int] = []
        bounds = [0]
        for span, start in zip(spans, starts, strict=True):
            written.extend(range(start + span.past, start + span.past + span.count))
            bounds.append(bounds[-1] + span.count)
        # The last start is never read as one, only as a bound.
        parts = (written, bounds, [*starts, starts[-1] + lengths[-1]], lengths)
        there, *small = to_device(*parts, device=self.store.device)
        bounds_there, starts_there, lengths_there = (part.int() for part in small)
        most_new = max(span.count for span in spans)
        ragged = Ragged(bounds_there, starts_there, lengths_there, most_new, max(lengths))
        return VarlenStep(self.store, there, ragged, gqa=self.gqa)

    def reach(self, longest: int) -> int:
        """Keys that a recorded pass may read of one request: as many as there are, since the kernel reads only what
        `lengths` on the device says."""
        del longest
        return self.total_tokens

    def begin_single(
        self, written: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, reach: int
    ) -> VarlenStep:
        """A pass of one new token per request, told in tensors alone, so that it can be recorded."""
        bounds = torch.arange(len(starts) + 1, device=starts.device, dtype=torch.int32)
        ends = torch.cat((starts, starts[-1:] + lengths[-1:]))
        return VarlenStep(self.store, written, Ragged(bounds, ends.int(), lengths.int(), 1, reach), gqa=self.gqa)


@dataclass(frozen=True)
class Ragged:
    """Where the kernel finds request *i*: its new tokens from `bounds[i]` on in the row, its keys from `starts[i]` on
    in the arena, `lengths[i]` of them."""

    bounds: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    most_new: int
    longest: int


class VarlenStep:
    """One pass; what is `written` is where the new keys and values go in the arena."""

    def __init__(self, store: torch.Tensor, written: torch.Tensor, ragged: Ragged, *, gqa: bool) -> None:
        self._store = store
        self._written = written
        self._ragged = ragged
        self._gqa = gqa

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        keys, values = self._store[layer]
        keys[self._written] = key[0].transpose(0, 1)
        values[self._written] = value[0].transpose(0, 1)
        out = varlen_attn(
            query[0].transpose(0, 1),
            keys,
            values,
            self._ragged.bounds,
            self._ragged.starts,
            self._ragged.most_new,
            self._ragged.longest,
            scale=scaling,
            window_size=(window - 1 if window is not None else -1, 0),
            enable_gqa=self._gqa,
            seqused_k=self._ragged.lengths,
        )
        return cast(torch.Tensor, out)[None]
