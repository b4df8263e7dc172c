"""Which words of answers differ: each against the first, the first against all others."""

from __future__ import annotations

from typing import Any

import pytest

from llava_core.errors import BadRequest
from serve.page.differences import differing, read_answers, read_base


def test_words_that_the_first_answer_does_not_have_are_found_in_the_second() -> None:
    first, second = ["a", "grey", "cat", "on", "a", "mat"], ["a", "black", "dog", "on", "a", "mat", "today"]
    assert differing([first, second]) == [[(1, 3)], [(1, 3), (6, 7)]]


def test_case_and_punctuation_do_not_count_but_signs_alone_do() -> None:
    assert differing([["Yes,", "2", "+", "2"], ["yes", "2", "-", "2"]]) == [[(2, 3)], [(2, 3)]]


def test_of_several_answers_the_first_shows_what_none_of_the_others_has() -> None:
    first, second, third = ["one", "two", "three"], ["one", "three"], ["one", "two", "four"]
    assert differing([first, second, third]) == [[], [], [(2, 3)]]


def test_the_others_can_be_compared_with_any_of_them() -> None:
    first, second, third = ["one", "two", "three"], ["one", "three"], ["one", "two", "four"]
    assert differing([first, second, third], 2) == [[(2, 3)], [(1, 2)], [(2, 3)]]
    assert differing([first, second], 1) == [[(1, 2)], []]


@pytest.mark.parametrize("base", [-1, 2, "1", None, 1.0])
def test_a_column_that_is_not_there_is_nothing_to_compare_with(base: Any) -> None:
    with pytest.raises(BadRequest):
        read_base(base, [[["one"], ["two"]]])


@pytest.mark.parametrize("answers", [[[]], [["alone"]], [[], []], [["same"] * 900, ["same"] * 900]])
def test_where_there_is_nothing_to_tell_apart_nothing_is_marked(answers: list[list[str]]) -> None:
    assert differing(answers) == [[] for _ in answers]


@pytest.mark.parametrize("message", [[["words"]], [[[1]]], [[[]] * 5, 3], [[]], [[["word"] * 50_000]]])
def test_what_is_no_list_of_answers_or_too_much_is_refused(message: Any) -> None:
    with pytest.raises(BadRequest):
        read_answers(message)
