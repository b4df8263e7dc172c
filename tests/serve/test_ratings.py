"""Ratings are the likeliest strengths, with intervals that hold what they promise."""

from __future__ import annotations

import evalica
import numpy as np
import pytest

from serve.ratings import MEAN, SCALE, Battle, rate, win_rates

NAMES = tuple("abcdef")


def votes(
    dice: np.random.Generator, strengths: np.ndarray, many: int, *, ties: float = 0.0, style: float | None = None
) -> list[Battle]:
    battles: list[Battle] = []
    for _ in range(many):
        a, b = dice.choice(len(strengths), 2, replace=False)
        longer = float(dice.normal(loc=strengths[a] - strengths[b])) if style is not None else 0.0
        chance = 1 / (1 + np.exp(-(strengths[a] - strengths[b] + (style or 0.0) * longer)))
        score = 0.5 if dice.random() < ties else float(dice.random() < chance)
        battles.append(Battle(NAMES[a], NAMES[b], score, () if style is None else (longer,)))
    return battles


@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_strengths_are_those_of_another_implementation(ties: float) -> None:
    battles = votes(np.random.default_rng(1), np.linspace(-1, 1, 6), 400, ties=ties)
    outcome = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    theirs = evalica.bradley_terry(
        [battle.a for battle in battles],
        [battle.b for battle in battles],
        [outcome[battle.score] for battle in battles],
        tolerance=1e-12,
        limit=100_000,
    ).scores
    expected = np.log(theirs.to_numpy(dtype=float))
    expected -= expected.mean()
    ours = {rating.model: (rating.points - MEAN) / SCALE for rating in rate(battles).rated}
    assert [ours[name] for name in theirs.index] == pytest.approx(list(expected), abs=1e-6)


@pytest.mark.parametrize("ties", [0.0, 0.25])
def test_intervals_hold_the_true_strength_as_often_as_they_say(ties: float) -> None:
    # With ties the strengths that the votes speak of are smaller: the truth is what endless votes would give.
    strengths = np.linspace(-0.8, 0.8, 6)
    aim = np.array(
        [rating.points for rating in _by_name(votes(np.random.default_rng(0), strengths, 60_000, ties=ties))]
    )
    inside = []
    for seed in range(1, 301):
        found = _by_name(votes(np.random.default_rng(seed), strengths, 500, ties=ties))
        inside += [rating.low <= true <= rating.high for rating, true in zip(found, aim, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_style_is_told_from_strength() -> None:
    strengths = np.linspace(-0.5, 0.5, 6)
    battles = votes(np.random.default_rng(3), strengths, 8000, style=1.0)
    plain = _by_name([Battle(battle.a, battle.b, battle.score) for battle in battles])
    controlled = rate(battles)
    truth = MEAN + SCALE * strengths
    fair = [rating.points for rating in sorted(controlled.rated, key=lambda rating: rating.model)]
    assert fair == pytest.approx(list(truth), abs=35)
    assert plain[-1].points - truth[-1] > 35, "longer answers of the better model would count for it twice"
    assert controlled.style[0] > 100


def test_a_model_that_only_won_is_not_rated_but_named() -> None:
    battles = [Battle("a", "b", 1), Battle("b", "a", 1), Battle("champion", "a", 1), Battle("champion", "b", 1)]
    found = rate(battles)
    assert {rating.model for rating in found.rated} == {"a", "b"}
    assert found.unrated == ("champion",)
    assert [(rating.battles, rating.wins, rating.ties) for rating in found.rated] == [(2, 1, 0), (2, 1, 0)]


def test_models_that_cannot_be_told_apart_share_a_rank() -> None:
    even = [Battle("a", "b", score) for score in (0.0, 1.0)] * 5
    assert [rating.rank for rating in rate(even).rated] == [1, 1]
    clear = [Battle("a", "b", 1.0)] * 95 + [Battle("a", "b", 0.0)] * 5
    assert [(rating.model, rating.rank) for rating in rate(clear).rated] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("battles", [[], [Battle("a", "b", 1.0)], [Battle("a", "a", 1.0)]])
def test_too_few_votes_rate_nobody(battles: list[Battle]) -> None:
    assert rate(battles).rated == ()


def test_win_rates_count_ties_as_halves() -> None:
    models, rates, met = win_rates([Battle("a", "b", 1.0), Battle("b", "a", 0.5), Battle("c", "a", 0.0)])
    assert models == ("a", "b", "c")
    assert rates[0, 1] == 0.75
    assert rates[1, 0] == 0.25
    assert rates[0, 2] == 1.0
    assert np.isnan(rates[1, 2])
    assert met.tolist() == [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


def _by_name(battles: list[Battle]) -> list:
    return sorted(rate(battles).rated, key=lambda rating: rating.model)
