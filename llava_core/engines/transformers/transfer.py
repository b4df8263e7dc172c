"""Numbers on their way from the host to the model's device: one copy for several lists, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(*parts: Sequence[int] | torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Each list, or flat tensor of the host, as a tensor of 64-bit integers."""
    tensors = [torch.as_tensor(part, dtype=torch.long) for part in parts]
    joined = sent(torch.cat(tensors), device)
    return joined.split([len(tensor) for tensor in tensors])


def sent(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device. Only CUDA is not waited for: for MPS torch does not keep the memory, which would be read after it
    was given to others."""
    return staged(numbers, device).to(device, non_blocking=device.type == "cuda")


def staged(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the host, where `device` can fetch it by itself while the host goes on: torch keeps the memory until then."""
    return numbers.pin_memory() if device.type == "cuda" else numbers
