"""The order of samples: shuffled, yet neighbours alike in length and in having pictures; a restart keeps it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

_SORTED_TOGETHER = 16
"""Groups of samples that are sorted by length among themselves: more waste less time, fewer mix better."""


class GroupedOrder(Sampler[int]):
    """Samples in groups of `group`, which go through the model together (on all devices).

    The order depends on the seed and the epoch alone. `taken` are the samples to use, by index.
    """

    def __init__(
        self, lengths: np.ndarray, pictured: np.ndarray, *, group: int, seed: int, taken: np.ndarray | None = None
    ) -> None:
        self._lengths = lengths
        self._pictured = pictured
        self._group = group
        self._seed = seed
        self._taken = np.arange(len(lengths)) if taken is None else taken
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._taken)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        dice = np.random.default_rng((self._seed, self.epoch))
        groups: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for shown in (True, False):
            alike = dice.permutation(self._taken[self._pictured[self._taken] == shown])
            for start in range(0, len(alike), self._group * _SORTED_TOGETHER):
                some = alike[start : start + self._group * _SORTED_TOGETHER]
                some = some[np.argsort(-self._lengths[some], kind="stable")]
                whole = len(some) // self._group * self._group
                groups += np.split(some[:whole], whole // self._group) if whole else []
                rest.append(some[whole:])
        left = np.concatenate(rest) if rest else np.empty(0, int)
        groups += [
            left[start : start + self._group] for start in range(0, len(left) // self._group * self._group, self._group)
        ]
        tail = left[len(left) // self._group * self._group :]
        for place in dice.permutation(len(groups)):
            yield from (int(index) for index in groups[place])
        # A group that is not full must come last, or all after it would be shifted.
        yield from (int(index) for index in tail)
