"""Strengths of models out of votes between pairs: Bradley-Terry by maximum likelihood, with intervals.

A tie counts as half a win for both, as LMArena counts it. Intervals come from the sandwich estimate, which holds where
voters are noisier than the model says. With style features (a's minus b's, of any scale) the strengths are those that
are left when length and layout of the answers are accounted for (LMArena's "style control").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

SCALE = 400 / np.log(10)
"""Points per unit of strength: 400 points are odds of ten to one, as in chess."""
MEAN = 1000.0
"""Points of the average model."""
_STEPS = 100
_ENOUGH = 1e-10

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Battle:
    """Two models on the same question. `score` is 1 when `a` won, 0 when `b` did, 0.5 for a tie or both bad."""

    a: str
    b: str
    score: float
    style: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rating:
    """`low` and `high` bound the interval; `rank` is 1 plus how many models are better beyond doubt."""

    model: str
    points: float
    low: float
    high: float
    rank: int
    battles: int
    wins: int
    ties: int


@dataclass(frozen=True)
class Ratings:
    rated: tuple[Rating, ...]
    """Best first."""
    unrated: tuple[str, ...]
    """Models that nothing can be said about yet: they only won, or only lost, or never met the others."""
    style: tuple[float, ...]
    """What one standard deviation of each style feature is worth, in points; 0 for one that never differed."""


def rate(battles: Iterable[Battle], *, level: float = 0.95) -> Ratings:
    """Ratings of all models that enough is known about. All battles must have equally many style features."""
    given = list(battles)
    everybody = sorted({name for battle in given for name in (battle.a, battle.b)})
    models = _comparable(given, everybody)
    place = {name: index for index, name in enumerate(models)}
    kept = Counter(battle for battle in given if battle.a in place and battle.b in place and battle.a != battle.b)
    unrated = tuple(name for name in everybody if name not in place)
    if len(models) < 2:
        return Ratings((), tuple(everybody), ())
    design, outcome, weight, deviation = _rows(kept, place)
    strength, covariance = _fit(design, outcome, weight, len(models))
    reach = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(np.diag(covariance)[: len(models)])
    points = MEAN + SCALE * strength[: len(models)]
    low, high = points - SCALE * reach, points + SCALE * reach
    rated = [
        Rating(name, points[i], low[i], high[i], 1 + int(np.sum(low > high[i])), *_record(kept, name))
        for name, i in place.items()
    ]
    measured = iter(strength[len(models) :])
    effects = tuple(float(SCALE * next(measured)) if spread else 0.0 for spread in deviation)
    return Ratings(tuple(sorted(rated, key=lambda rating: -rating.points)), unrated, effects)


def win_rates(battles: Iterable[Battle]) -> tuple[tuple[str, ...], Numbers, NDArray[np.int64]]:
    """Models by name; the share that the row's model won against the column's (a tie is half, NaN where they never
    met); and how often they met."""
    given = list(battles)
    models = tuple(sorted({name for battle in given for name in (battle.a, battle.b)}))
    place = {name: index for index, name in enumerate(models)}
    won, met = np.zeros((len(models), len(models))), np.zeros((len(models), len(models)), dtype=np.int64)
    for battle in given:
        a, b = place[battle.a], place[battle.b]
        if a != b:
            won[a, b] += battle.score
            won[b, a] += 1 - battle.score
            met[a, b] += 1
            met[b, a] += 1
    with np.errstate(invalid="ignore"):
        return models, won / np.where(met, met, np.nan), met


def _comparable(battles: Sequence[Battle], models: Sequence[str]) -> list[str]:
    """The largest group in which everybody has, over others if need be, both won and lost against everybody (Ford's
    condition); outside of one, the likeliest strengths are infinite."""
    place = {name: index for index, name in enumerate(models)}
    beats = np.eye(len(models), dtype=bool)
    for battle in battles:
        beats[place[battle.a], place[battle.b]] |= battle.score > 0
        beats[place[battle.b], place[battle.a]] |= battle.score < 1
    for _ in range(max(1, len(models)).bit_length()):
        beats = (beats.astype(np.int32) @ beats.astype(np.int32)) > 0
    together = beats & beats.T
    if not len(models):
        return []
    largest = max(range(len(models)), key=lambda index: int(together[index].sum()))
    return [name for name, index in place.items() if together[largest, index]]


def _rows(battles: Counter[Battle], place: dict[str, int]) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """A row for each different battle: +1 and -1 for its models, then its style in standard deviations."""
    style = np.array([battle.style for battle in battles], dtype=np.float64).reshape(len(battles), -1)
    weight = np.array(list(battles.values()), dtype=np.float64)
    deviation = np.sqrt(np.average(style**2, axis=0, weights=weight))
    scaled = style[:, deviation > 0] / deviation[deviation > 0]
    models = np.zeros((len(battles), len(place)))
    for row, battle in enumerate(battles):
        models[row, place[battle.a]] += 1
        models[row, place[battle.b]] -= 1
    return np.hstack((models, scaled)), np.array([battle.score for battle in battles]), weight, deviation


def _fit(design: Numbers, outcome: Numbers, weight: Numbers, models: int) -> tuple[Numbers, Numbers]:
    """Coefficients by Newton's method, those of the models summing to zero, and their sandwich covariance."""
    held = np.zeros((design.shape[1], design.shape[1]))
    held[:models, :models] = 1 / models
    found = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-design @ found))
        bend = (design.T * (weight * chance * (1 - chance))) @ design + held
        step = np.linalg.solve(bend, design.T @ (weight * (outcome - chance)))
        # Far from the goal a whole step may overshoot.
        found += step / max(1.0, float(np.abs(step).max()) / 2)
        if np.abs(step).max() < _ENOUGH:
            break
    chance = 1 / (1 + np.exp(-design @ found))
    inverse = np.linalg.inv((design.T * (weight * chance * (1 - chance))) @ design + held)
    spread = (design.T * (weight * (outcome - chance) ** 2)) @ design
    return found, inverse @ spread @ inverse


def _record(battles: Counter[Battle], model: str) -> tuple[int, int, int]:
    """Battles, wins and ties."""
    own = [(battle, count) for battle, count in battles.items() if model in (battle.a, battle.b)]
    won = sum(count for battle, count in own if battle.score == (1 if battle.a == model else 0))
    return sum(count for _, count in own), won, sum(count for battle, count in own if 0 < battle.score < 1)
