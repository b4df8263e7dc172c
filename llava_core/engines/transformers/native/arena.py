"""Memory for packed weights: in huge pages where the system has them, since a decode step reads all of it."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import nn

_HUGE = 1 << 21
_Long, _Pointer = ctypes.c_int64, ctypes.c_void_p


class Arena:
    """Holds what the kernel's pointers point to, for as long as it lives itself."""

    def __init__(self, linears: Iterable[nn.Linear]) -> None:
        """With room for these layers' weights; what is not written takes no memory."""
        size = sum(_size(*linear.weight.shape) for linear in linears) + _HUGE
        if hasattr(mmap, "MAP_ANONYMOUS"):
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        begin = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        self._next = (begin + _HUGE - 1) // _HUGE * _HUGE
        self._floats: list[torch.Tensor] = []

    def pack(self, library: ctypes.CDLL, linears: Sequence[nn.Linear], *, keep: torch.Tensor | None = None) -> int:
        """The address of the weights of these layers, one below the other, packed. The layers are empty afterwards,
        except where their weight is `keep`."""
        weight = linears[0].weight if len(linears) == 1 else torch.cat([each.weight for each in linears])
        weight = weight.detach().contiguous()
        outputs, inputs = weight.shape
        address, self._next = self._next, self._next + _size(outputs, inputs)
        library.pack(_Pointer(weight.data_ptr()), _Long(outputs), _Long(inputs), _Pointer(address))
        for linear in linears:
            if keep is None or linear.weight.data_ptr() != keep.data_ptr():
                linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
        return address

    def floats(self, *tensors: torch.Tensor) -> int:
        """The address of these numbers, one after the other, in float32."""
        kept = torch.cat([each.detach().flatten() for each in tensors]).float()
        self._floats.append(kept)
        return kept.data_ptr()


def _size(outputs: int, inputs: int) -> int:
    """Bytes of packed weights. Those packed as one take no more than each by itself."""
    return (outputs + 31) // 32 * 32 * inputs * 2
