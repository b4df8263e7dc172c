"""By how much each position turns a head (rotary position embedding), computed once where it never changes."""

from __future__ import annotations

from typing import Any

import torch

_FIXED = frozenset({"default", "linear", "llama3", "yarn"})
"""Kinds whose angle at a position is the same however long the text is; `dynamic` and `longrope` look at that."""
_AT_LEAST = 1024


class Turns:
    """Cosines and sines of a decoder's own rotary embedding, kept for the positions that were asked for so far."""

    def __init__(self, rotary: Any) -> None:
        self._rotary = rotary
        self._fixed = getattr(rotary, "rope_type", None) in _FIXED
        self._known: tuple[torch.Tensor, torch.Tensor] | None = None

    def at(self, positions: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two times (rows, dim) float32 for `positions` (rows,), all below `longest`."""
        if not self._fixed:
            return self._compute(positions)
        if self._known is None or len(self._known[0]) < longest:
            self._known = self._compute(torch.arange(max(2 * longest, _AT_LEAST)))
        cos, sin = self._known
        return cos.index_select(0, positions), sin.index_select(0, positions)

    def _compute(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self._rotary(torch.empty(1), positions[None])
        return cos[0].contiguous(), sin[0].contiguous()
