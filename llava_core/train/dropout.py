"""Dropout that costs little on a CPU: one random number decides over eight values, where torch draws one for each."""

from __future__ import annotations

import torch
from torch import nn

_LEVELS = 256


class ByteDropout(nn.Module):
    """Drops a part of the values, to the nearest 256th, and scales the others up by what was dropped."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self._limit = max(1, round(part * _LEVELS))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return given
        count = given.numel()
        words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(1 << 63), None)
        kept = words.view(torch.uint8)[:count].view(given.shape) >= self._limit
        return given * kept.to(given.dtype).mul_(_LEVELS / (_LEVELS - self._limit))
