"""How the built-in model is taught: the rates of each stage and round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_core.builtin.data.samples import DESCRIBED, DRILLS, KEPT_AWAKE, PRACTICE, SCENE_DRILLS

STAGE_ONE: Mapping[str, Any] = {"projector_rate": 1e-3, "batch_size": 8, "max_length": 512}
STAGE_TWO: Mapping[str, Any] = {
    "lora": True,
    "lora_rank": 32,
    "lora_alpha": 64,
    "lora_dropout": 0.0,
    "lora_rate": 8e-4,
    "projector_rate": 5e-4,
    "batch_size": 8,
    "max_length": 512,
}
"""Higher rates and smaller batches than the paper's: there are hundreds of times fewer samples."""


@dataclass(frozen=True)
class Round:
    """More of the second stage, each begun where the one before ended: about how many pictures of which kinds, and
    with how many of the texts. Not `drilled`, it asks as the second stage does. On top come photographs under other
    names, `relabelled`; `opened` chats begin with what a picture shows."""

    name: str
    pictures: int
    kinds: Mapping[str, float]
    texts: int
    rank: int
    rate: float
    projector_rate: float
    seed: int
    drilled: bool = True
    steps: int = 0
    relabelled: int = 0
    opened: bool = False


PRACTICE_ROUNDS: Sequence[Round] = (
    Round("practice", 600, PRACTICE, 0, 16, 4e-4, 2e-4, 1_000, drilled=False),
    Round("practice-2", 1_950, DRILLS, 60, 32, 6e-4, 4e-4, 2_000),
    Round("practice-3", 1_050, SCENE_DRILLS, 40, 16, 3.5e-4, 2.5e-4, 3_000, steps=100),
    Round("practice-4", 650, KEPT_AWAKE, 60, 16, 4e-4, 3e-4, 4_000, relabelled=3_500),
    Round("practice-5", 400, DESCRIBED, 30, 16, 3.5e-4, 2.5e-4, 5_000, relabelled=400, opened=True),
)
"""What the first leaves unsure: places, what is beside what, counts, names of drawings; at last to believe the tower
about photographs of whatever kind, and to say all there is to see.

What is shipped was made so, its data with seed 1; its samples' order came of seeds 0, 0, 0, 11, 12, 1 and 1, and
its second stage ended after 625 of 709 steps. The fourth round was begun from the others' adapters packed as one.
"""
