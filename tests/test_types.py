"""The shared words: a request that exists is complete and within range."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from llava_core.errors import BadRequest
from llava_core.types import (
    ImagePart,
    Message,
    Request,
    Sampling,
    TextPart,
    assistant,
    system,
    user,
)

PICTURE = ImagePart("data:image/png;base64,AAAA")
RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 1 << 20),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, 1 << 20),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (-(1 << 63), (1 << 63) - 1),
    "min_tokens": (0, 1 << 20),
    "logprobs": (0, 20),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_setting_is_taken_within_its_range_and_refused_outside_by_name(name: str) -> None:
    low, high = RANGES[name]
    for value in (low, high):
        setting: dict[str, Any] = {name: value}
        assert getattr(Sampling(**setting), name) == value
    for value in (low - 1, high + 1, math.nan, math.inf, -math.inf, 10**400, -(10**400)):
        wrong: dict[str, Any] = {name: value}
        with pytest.raises(BadRequest) as caught:
            Sampling(**wrong)
        assert caught.value.param == name
        assert caught.value.message.startswith(f"{name} must be between")


def test_a_bias_is_held_to_its_range_too() -> None:
    Sampling(logit_bias={5: -100, 6: 100})
    for value in (101, math.nan):
        with pytest.raises(BadRequest, match="logit_bias"):
            Sampling(logit_bias={5: value})


def test_stop_strings_are_few_and_short_and_none_is_empty() -> None:
    Sampling(stop=("a",) * 16)
    for stop in (("a",) * 17, ("",), ("a" * 257,)):
        with pytest.raises(BadRequest, match="stop"):
            Sampling(stop=stop)


def test_fewer_tokens_may_be_wanted_than_allowed_but_not_more() -> None:
    Sampling(min_tokens=5, max_tokens=5)
    with pytest.raises(BadRequest, match="min_tokens"):
        Sampling(min_tokens=6, max_tokens=5)


def test_a_chat_ends_with_the_user_unless_an_answer_is_to_be_continued() -> None:
    asked, answered = user("Hello"), assistant("Hi")
    Request("m", (asked,))
    Request("m", (asked, answered), continue_final=True)
    for messages, go_on in (((), False), ((asked, answered), False), ((system("x"),), False), ((asked,), True)):
        with pytest.raises(BadRequest) as caught:
            Request("m", messages, continue_final=go_on)
        assert caught.value.param == "messages"


def test_pictures_are_found_in_their_order_through_all_turns() -> None:
    first, second, third = (ImagePart(f"data:,{number}") for number in range(3))
    chat = (user(first, "a", second), assistant("b"), user("c", third))
    assert Request("m", chat).images == (first, second, third)
    assert chat[0].images == (first, second)
    assert chat[0].text == "a"


def test_bare_strings_become_text_parts() -> None:
    assert user(PICTURE, "What?") == Message("user", (PICTURE, TextPart("What?")))
    assert (assistant("a").role, system("b").role) == ("assistant", "system")


def test_requests_are_told_apart_and_cannot_be_changed() -> None:
    one, other = Request("m", (user("a"),)), Request("m", (user("a"),))
    assert one.id != other.id
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.model = "n"  # pyright: ignore[reportAttributeAccessIssue]
