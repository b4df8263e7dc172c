"""What of the machine this process may use: memory, the limit of its container included. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own limits. Kernel documentation: cgroup-v2.rst, cgroup-v1/memory.rst."""

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


def _statistic(path: Path, name: str) -> int:
    try:
        found = dict(line.split() for line in path.read_text().splitlines())
        return int(found.get(name, 0))
    except (OSError, ValueError):
        return 0
