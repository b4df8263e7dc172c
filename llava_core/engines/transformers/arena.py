"""One block of memory per layer, cut into contiguous regions: the key and value store of accelerators."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import cast

import torch

from llava_core.engines.transformers.attention import KVShape, Region


@dataclass(eq=False)
class ArenaRegion:
    """Tokens `start` to `start + tokens` of the arena."""

    start: int
    tokens: int


class Room:
    """Which tokens of the arena are free: sorted, never touching pieces."""

    def __init__(self, tokens: int) -> None:
        self._starts = [0] if tokens else []
        self._ends = [tokens] if tokens else []

    @property
    def free(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def take(self, tokens: int) -> int | None:
        """Start of the smallest free piece that is large enough; None if there is none."""
        sizes = [(end - start, index) for index, (start, end) in enumerate(zip(self._starts, self._ends, strict=True))]
        fitting = [piece for piece in sizes if piece[0] >= tokens]
        if not fitting:
            return None
        start = self._starts[min(fitting)[1]]
        self._cut(min(fitting)[1], tokens)
        return start

    def extend(self, end: int, tokens: int) -> bool:
        """Take `tokens` that follow right after `end`, if they are free."""
        index = bisect.bisect_left(self._starts, end)
        if index == len(self._starts) or self._starts[index] != end or self._ends[index] - end < tokens:
            return False
        self._cut(index, tokens)
        return True

    def give(self, start: int, end: int) -> None:
        """Take back a piece, joined with its free neighbours."""
        if start == end:
            return
        index = bisect.bisect_left(self._starts, start)
        if index < len(self._starts) and self._starts[index] == end:
            end = self._ends[index]
            del self._starts[index], self._ends[index]
        if index and self._ends[index - 1] == start:
            self._ends[index - 1] = end
            return
        self._starts.insert(index, start)
        self._ends.insert(index, end)

    def _cut(self, index: int, tokens: int) -> None:
        self._starts[index] += tokens
        if self._starts[index] == self._ends[index]:
            del self._starts[index], self._ends[index]


class Arena:
    """Keys and values of all layers in the model's dtype; `store` is (layers, 2, tokens, kv heads, dim). One token more
    than can be allocated, `scratch`, takes what rows write that only fill up a batch."""

    def __init__(self, shape: KVShape, *, kv_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.bytes_per_token = 2 * shape.layers * shape.kv_heads * shape.dim * dtype.itemsize
        self.total_tokens = kv_bytes // self.bytes_per_token
        self.store = torch.zeros(
            (shape.layers, 2, self.total_tokens + 1, shape.kv_heads, shape.dim), dtype=dtype, device=device
        )
        self.scratch = self.total_tokens
        self.gqa = shape.heads != shape.kv_heads
        self._room = Room(self.total_tokens)

    def allocate(self, tokens: int) -> ArenaRegion | None:
        start = self._room.take(tokens)
        return None if start is None else ArenaRegion(start, tokens)

    def resize(self, region: Region, tokens: int) -> bool:
        own = cast(ArenaRegion, region)
        if tokens < own.tokens:
            self._room.give(own.start + tokens, own.start + own.tokens)
        elif tokens > own.tokens and not self._room.extend(own.start + own.tokens, tokens - own.tokens):
            return False
        own.tokens = tokens
        return True

    def copy(self, source: Region, target: Region, tokens: int) -> None:
        origin, end = cast(ArenaRegion, source).start, cast(ArenaRegion, target).start
        self.store[:, :, end : end + tokens] = self.store[:, :, origin : origin + tokens]

    def keys(self, region: Region, layer: int, tokens: int) -> torch.Tensor:
        start = cast(ArenaRegion, region).start
        return self.store[layer, 0, start : start + tokens].transpose(0, 1)

    def release(self, region: Region) -> None:
        own = cast(ArenaRegion, region)
        self._room.give(own.start, own.start + own.tokens)
        own.tokens = 0
