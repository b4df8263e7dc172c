"""Which of several workers takes the next request: one function per policy, pure but for the dice it is handed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A live worker that serves the wanted model. `queue_length` counts what it reported and what it was sent
    since; `last_picked` is when it was last chosen, 0 for never."""

    address: str
    speed: float
    queue_length: int
    capacity: int
    last_picked: float = 0.0


Policy = Callable[[Sequence[Candidate], random.Random], Candidate]


def shortest_queue(candidates: Sequence[Candidate], dice: random.Random) -> Candidate:
    """The worker that one more request would load least, by its capacity and speed; in a tie the longest idle."""
    return min(
        candidates,
        key=lambda worker: ((worker.queue_length + 1) / (worker.capacity * worker.speed), worker.last_picked),
    )


def lottery(candidates: Sequence[Candidate], dice: random.Random) -> Candidate:
    """Any worker, the faster the likelier."""
    return dice.choices(candidates, weights=[worker.speed for worker in candidates])[0]


POLICIES: Mapping[str, Policy] = {"shortest_queue": shortest_queue, "lottery": lottery}
"""By the names that `--dispatch-method` takes."""
