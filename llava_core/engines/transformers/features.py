"""Encoded pictures, kept by what they show: bounded in bytes, least recently used out first."""

from __future__ import annotations

from collections import OrderedDict

import torch


class FeatureCache:
    """Features by whose picture it is and its key, which already holds pixels, size and preprocessing."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()
        self.bytes = 0

    def get(self, name: tuple[str, str]) -> torch.Tensor | None:
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def put(self, name: tuple[str, str], features: torch.Tensor) -> None:
        """Keep it, unless it alone is larger than all that may be kept."""
        size = features.numel() * features.element_size()
        if name in self._kept or size > self._limit:
            return
        self._kept[name] = features
        self.bytes += size
        while self.bytes > self._limit:
            _, old = self._kept.popitem(last=False)
            self.bytes -= old.numel() * old.element_size()

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0
