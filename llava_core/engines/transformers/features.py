"""Encoded pictures, kept by what they show: bounded in bytes, least recently used out first."""

from __future__ import annotations

from collections import OrderedDict

import torch


class FeatureCache:
    """Features by picture key; the key already holds pixels, size and preprocessing."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.bytes = 0

    def get(self, key: str) -> torch.Tensor | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: str, features: torch.Tensor) -> None:
        """Keep it, unless it alone is larger than all that may be kept."""
        size = features.numel() * features.element_size()
        if key in self._kept or size > self._limit:
            return
        self._kept[key] = features
        self.bytes += size
        while self.bytes > self._limit:
            _, old = self._kept.popitem(last=False)
            self.bytes -= old.numel() * old.element_size()

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0
