"""How much of everything the built-in model may be taught anew with, and what that costs. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How much of everything. `tower` 0 keeps the tower that is shipped; `only` are skills on drawings of one shape,
    `practice` the part of `PRACTICE_ROUNDS` that is gone through."""

    tower: int
    encoded: int
    pictures: int
    captions: int
    texts: bool
    per_skill: int
    words: str
    """How long it takes, and what it does."""
    disk_gb: int
    """In --out while it runs: a checkpoint and two saved states of each stage and round, and what the tower sees in all
    pictures. What is fetched comes to the cache beside it."""
    memory_gb: int
    """In float32; where the processor multiplies bfloat16 it is less."""
    rounds: int = 2
    practice: float = 0.0
    only: tuple[str, ...] = ()


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        0,
        0,
        96,
        96,
        False,
        24,
        "a minute or two: the shipped tower, and one skill, the colour of a shape",
        disk_gb=1,
        memory_gb=4,
        rounds=1,
        only=("color",),
    ),
    "small": Size(
        3_000, 1_024, 600, 300, True, 20, "about forty minutes on two cores", disk_gb=4, memory_gb=5, practice=0.1
    ),
    "stages": Size(
        0,
        0,
        2_800,
        1_200,
        True,
        60,
        "several hours on two cores: the shipped tower, both stages at full size",
        disk_gb=7,
        memory_gb=5,
        practice=1.0,
    ),
    "full": Size(
        20_000,
        5_120,
        2_800,
        1_200,
        True,
        60,
        "several hours on two cores, the tower's own among them: as it was shipped",
        disk_gb=7,
        memory_gb=5,
        practice=1.0,
    ),
}


def cost_of(name: str) -> str:
    """Time, disk and memory of a size, in words."""
    size = SIZES[name]
    return f"{name} takes {size.words}; {size.disk_gb} GB of disk, {size.memory_gb} GB of memory"
