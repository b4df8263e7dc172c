"""How much memory the store of keys and values may take."""

from __future__ import annotations

from pathlib import Path

import torch

_SHARE_OF_FREE = 0.5
_SHARE_OF_FREE_GPU = 0.85
_LEAST_FREE = 0.06


def kv_budget(device: torch.device, wanted: int | None) -> int:
    """Bytes: what was asked for, else a share of what is free now that the weights are loaded."""
    if wanted is not None:
        return wanted
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _SHARE_OF_FREE_GPU)
    return int(_free_memory() * _SHARE_OF_FREE)


def is_short() -> bool:
    """Whether the machine comes to the end of its memory, whoever uses it."""
    import psutil

    return _free_memory() < _LEAST_FREE * psutil.virtual_memory().total


def _free_memory() -> int:
    """Of the machine, or of the container it runs in."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, int(limit) - used) if limit.isdigit() else free
