"""Guesses come from the chat's own words, grow with success and rest after failure."""

from __future__ import annotations

import pytest

from llava_core.engines.transformers.speculate import Lookup, may_speculate
from llava_core.types import Sampling

REPEATED = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]


def test_the_guess_is_what_followed_the_same_three_tokens_before() -> None:
    assert Lookup(()).guess(REPEATED, 8) == (4, 5, 6)


def test_the_latest_occurrence_counts() -> None:
    assert Lookup(()).guess([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], 1) == (5,)


def test_nothing_is_guessed_without_an_earlier_occurrence() -> None:
    assert Lookup(()).guess([1, 2, 3, 4, 5], 8) == ()
    assert Lookup(()).guess([1, 2], 8) == ()


def test_a_guess_stops_before_an_id_that_must_not_be_guessed() -> None:
    assert Lookup({5}).guess(REPEATED, 8) == (4,)


def test_no_more_is_guessed_than_there_is_room_for() -> None:
    assert Lookup(()).guess(REPEATED, 2) == (4, 5)
    assert Lookup(()).guess(REPEATED, 0) == ()


def test_right_guesses_grow_and_wrong_ones_rest_longer_each_time() -> None:
    ids = [*range(100), 0, 1, 2]
    lookup = Lookup(())
    assert len(lookup.guess(ids, 8)) == 3
    lookup.told(3, 3)
    assert len(lookup.guess(ids, 8)) == 6
    lookup.told(6, 0)
    pauses = []
    for _ in range(3):
        pause = 0
        while not lookup.guess(ids, 8):
            pause += 1
        pauses.append(pause)
        lookup.told(3, 0)
    assert pauses == [2, 4, 8]


def test_tokens_that_came_since_the_last_guess_are_learned() -> None:
    lookup = Lookup(())
    ids = [1, 2, 3]
    assert lookup.guess(ids, 4) == ()
    assert lookup.guess([*ids, 4, 5, 1, 2, 3], 4) == (4, 5, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.2},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"logit_bias": {3: 1.0}},
        {"logprobs": 0},
        {"min_tokens": 3},
    ],
)
def test_only_plain_greedy_answers_are_guessed(changes: dict[str, object]) -> None:
    assert may_speculate(Sampling(temperature=0))
    assert not may_speculate(Sampling(**{"temperature": 0, **changes}))  # pyright: ignore[reportArgumentType]
