"""Which two models meet: any pair may, those that met least often are the likeliest, and sides are random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from random import Random

from llava_core.errors import NoWorker
from llava_core.types import ModelInfo

Pair = frozenset[str]
_MOST = 10**12
"""Counts beyond it weigh the same, so that no weight vanishes."""


def choose(offered: Sequence[ModelInfo], pictures: bool, met: Mapping[Pair, int], random: Random) -> tuple[str, str]:
    """Two of the models on offer; where the first question has `pictures`, two that take them. Raises NoWorker."""
    if len(offered) < 2:
        raise NoWorker(f"a battle needs two models and {len(offered)} is on offer; start another and come back")
    names = [info.name for info in offered if info.accepts_images or not pictures]
    if len(names) < 2:
        raise NoWorker(
            f"a battle about pictures needs two models that take them and {len(names)} on offer does; ask without "
            "pictures, or start another and come back"
        )
    return draw(names, met, random)


def draw(models: Iterable[str], met: Mapping[Pair, int], random: Random) -> tuple[str, str]:
    """Two different models, left and right. `met` counts the votes per pair. Raises ValueError for fewer than two."""
    chances = weights(models, met)
    if not chances:
        raise ValueError("a battle needs two different models")
    [pair] = random.choices(list(chances), list(chances.values()))
    left, right = random.sample(sorted(pair), 2)
    return left, right


def weights(models: Iterable[str], met: Mapping[Pair, int]) -> dict[Pair, float]:
    """How likely each pair is, in all 1: a pair with n votes weighs 1 / (n + 1)."""
    pairs = [frozenset(pair) for pair in combinations(sorted(set(models)), 2)]
    raw = [1 / (1 + min(max(met.get(pair, 0), 0), _MOST)) for pair in pairs]
    total = sum(raw)
    return {pair: weight / total for pair, weight in zip(pairs, raw, strict=True)}
