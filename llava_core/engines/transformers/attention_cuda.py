"""Attention on CUDA: one ragged FlashAttention call per layer over regions of the arena."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from llava_core.engines.transformers.arena import Arena, ArenaRegion
from llava_core.engines.transformers.attention import KVShape, Span


def varlen_serves(dtype: torch.dtype, device: torch.device, shape: KVShape) -> bool:
    """Whether torch's ragged kernel takes this model: half precision on Ampere or newer, head size up to 256."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and shape.dim <= 256 and shape.dim % 8 == 0


class VarlenAttention(Arena):
    """The backend for CUDA cards with FlashAttention in torch."""

    def __init__(self, shape: KVShape, *, kv_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, kv_bytes=kv_bytes, dtype=dtype, device=device)
        self._gqa = shape.heads != shape.kv_heads

    def begin(self, spans: Sequence[Span]) -> VarlenStep:
        return VarlenStep(self.store, spans, gqa=self._gqa)


class VarlenStep:
    """One pass. The kernel reads request *i* at `starts[i]` of the arena for `lengths[i]` tokens."""

    def __init__(self, store: torch.Tensor, spans: Sequence[Span], *, gqa: bool) -> None:
        self._store = store
        self._gqa = gqa
        regions = [cast(ArenaRegion, span.region) for span in spans]
        written: list[int] = []
        bounds = [0]
        for span, region in zip(spans, regions, strict=True):
            written.extend(range(region.start + span.past, region.start + span.past + span.count))
            bounds.append(bounds[-1] + span.count)
        lengths = [span.past + span.count for span in spans]
        starts = [region.start for region in regions]
        # One transfer for all four; the last start is never read as one, only as a bound.
        numbers = torch.tensor(written + bounds + [*starts, starts[-1] + lengths[-1]] + lengths)
        if store.device.type == "cuda":
            numbers = numbers.pin_memory().to(store.device, non_blocking=True)
        self._written, *small = numbers.split((len(written), len(bounds), len(starts) + 1, len(lengths)))
        self._bounds, self._starts, self._lengths = (part.int() for part in small)
        self._most_new = max(span.count for span in spans)
        self._longest = max(lengths)

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
            self._bounds,
            self._starts,
            self._most_new,
            self._longest,
            scale=scaling,
            window_size=(window - 1 if window is not None else -1, 0),
            enable_gqa=self._gqa,
            seqused_k=self._lengths,
        )
        return cast(torch.Tensor, out)[None]
