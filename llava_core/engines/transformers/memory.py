"""How much memory the store of keys and values may take."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from llava_core.checkpoints.memory import in_words
from llava_core.config import BatchLimits
from llava_core.errors import BadRequest
from llava_core.machine import CGROUP, memory

log = logging.getLogger(__name__)

_SHARE_OF_FREE = 0.5
_SHARE_OF_FREE_GPU = 0.85
_LEAST_FREE = 0.06


def kv_budget(device: torch.device, limits: BatchLimits) -> int:
    """Bytes: what was asked for, else a share of what is free now that the weights are loaded.

    BadRequest for more than a GPU has left; on a CPU memory is taken as chats grow, so there it is only said.
    """
    on_gpu = device.type == "cuda"
    free = free_bytes(device)
    if limits.kv_bytes is None:
        return int(free * (limits.kv_share or (_SHARE_OF_FREE_GPU if on_gpu else _SHARE_OF_FREE)))
    if limits.kv_bytes > free:
        sentence = (
            f"{in_words(limits.kv_bytes)} for keys and values are more than the {in_words(free)} that are free on "
            f"{device} beside the weights"
        )
        if on_gpu:
            raise BadRequest(f"{sentence}; ask for less with --kv-memory", param="kv_memory")
        log.warning("%s; parked chats will be dropped early", sentence)
    return limits.kv_bytes


def free_bytes(device: torch.device) -> int:
    """Memory of a device that nobody uses."""
    if device.type == "cuda":
        # What loading took for a moment is free as well.
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return memory().free


def is_short(cgroup: Path = CGROUP) -> bool:
    """Whether the machine, or the container, comes to the end of its memory, whoever uses it."""
    found = memory(cgroup)
    return found.free < _LEAST_FREE * found.total
