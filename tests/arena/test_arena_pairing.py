"""Pairs for battles: always two different models of those on offer, the rare ones first."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as some

from serve.arena.pairing import Pair, draw, weights

NAMES = some.lists(some.text(min_size=1, max_size=8), min_size=2, max_size=7, unique=True)


@given(names=NAMES, counts=some.lists(some.integers(), max_size=21), seed=some.integers())
def test_weights_are_a_distribution_whatever_was_counted(names: list[str], counts: list[int], seed: int) -> None:
    pairs = [frozenset(pair) for pair in combinations(sorted(names), 2)]
    met = dict(zip(pairs, counts, strict=False))
    chances = weights(names, met)
    assert set(chances) == set(pairs)
    assert all(math.isfinite(chance) and chance > 0 for chance in chances.values())
    assert math.isclose(sum(chances.values()), 1)
    left, right = draw(names, met, Random(seed))
    assert left != right
    assert {left, right} <= set(names)


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"]])
def test_fewer_than_two_models_make_no_battle(names: list[str]) -> None:
    with pytest.raises(ValueError, match="two different models"):
        draw(names, {}, Random(0))


def test_pairs_with_few_votes_are_preferred_until_all_have_as_many() -> None:
    met: Counter[Pair] = Counter({frozenset("ab"): 500})
    random = Random(1)
    for _ in range(600):
        met[frozenset(draw("abcd", met, random))] += 1
    others = [count for pair, count in met.items() if pair != frozenset("ab")]
    assert met[frozenset("ab")] < 530
    assert min(others) > 0.7 * max(others)


def test_sides_are_random() -> None:
    random = Random(2)
    left = Counter(draw("ab", {}, random)[0] for _ in range(1000))
    assert 400 < left["a"] < 600
