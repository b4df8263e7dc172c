"""What of the machine this process may use: memory and cores, the limits of its container included. Needs no torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own limits. Kernel documentation: cgroup-v2.rst, cgroup-v1/memory.rst, sched-bwc.rst."""

_MEMORY = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes: what there is, and what of it is free or would be freed for who asks."""

    total: int
    free: int


def memory(cgroup: Path = CGROUP) -> Memory:
    """Main memory of the machine, or of the container where that has less."""
    import psutil

    host = psutil.virtual_memory()
    for limit, used, stat, cached in _MEMORY:
        try:
            most, taken = int((cgroup / limit).read_text()), int((cgroup / used).read_text())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        # Files that were read count as used until somebody needs their place.
        left = most - max(0, taken - _statistic(cgroup / stat, cached))
        return Memory(min(host.total, most), max(0, min(host.available, left)))
    return Memory(host.total, host.available)


def cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may keep busy: physical ones, those it is bound to, and the container's share of time.

    The second thread of a core adds nothing to a model and may cost much; a thread beyond the container's share is
    stopped for the rest of each period, and all others wait for it.
    """
    import psutil

    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed, _share_of_time(cgroup) or physical))


def _share_of_time(cgroup: Path) -> int | None:
    """In cores, rounded up; None without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        return math.ceil(quota / period) if quota > 0 and period > 0 else None
    return None


def _statistic(path: Path, name: str) -> int:
    try:
        found = dict(line.split() for line in path.read_text().splitlines())
        return int(found.get(name, 0))
    except (OSError, ValueError):
        return 0
