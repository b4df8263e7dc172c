"""Memory that the kernel works in, kept from call to call and grown when a call needs more."""

from __future__ import annotations

import torch


class Scratch:
    """What is in it is lost at the next call; one thread at a time."""

    def __init__(self) -> None:
        self._rooms: dict[str, torch.Tensor] = {}

    def room(self, name: str, size: int) -> int:
        """The address of `size` bytes."""
        known = self._rooms.get(name)
        if known is None or known.numel() < size:
            self._rooms[name] = known = torch.empty(2 * size, dtype=torch.uint8)
        return known.data_ptr()
