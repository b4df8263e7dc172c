"""Errors keep their class, sentence and hints on the way through a wire."""

from __future__ import annotations

import json
import math

import pytest

from llava_core import errors
from llava_core.errors import BadRequest, EngineFailure, LlavaError, Overloaded, WorkerLost, from_body

CLASSES = sorted(
    (cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, LlavaError)),
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_the_wire(cls: type[LlavaError]) -> None:
    sent = cls("what, to what, what next", param="messages", retry_after=1.5, request_id="chatcmpl-1")
    got = from_body(json.loads(json.dumps(sent.to_body())))
    assert type(got) is cls
    assert (got.message, got.param, got.retry_after, got.request_id) == (
        "what, to what, what next",
        "messages",
        1.5,
        "chatcmpl-1",
    )
    assert str(got) == got.message
    assert got.code == cls.__name__


@pytest.mark.parametrize("cls", CLASSES)
def test_a_body_has_what_openai_clients_look_for(cls: type[LlavaError]) -> None:
    error = cls("message").to_body()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["type"] in (
        "server_error",
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "rate_limit_error",
    )
    assert (error["type"] == "invalid_request_error") == issubclass(cls, BadRequest)


def test_what_the_caller_did_wrong_is_not_worth_a_retry() -> None:
    assert not any(cls.retryable for cls in CLASSES if issubclass(cls, BadRequest))
    assert Overloaded.retryable
    assert WorkerLost.retryable


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no", "type": "x", "code": "rate_limit_exceeded", "param": None}},
        {"error": {"message": "no", "code": None}},
        {"error": {"message": "no", "code": ["LlavaError"]}},
        {"message": "no", "code": 500},
        {"error": "no"},
    ],
)
def test_another_servers_error_becomes_the_fallback(body: dict[str, object]) -> None:
    assert type(from_body(body)) is EngineFailure
    got = from_body(body, fallback=WorkerLost)
    assert type(got) is WorkerLost
    assert got.message == "no"


def test_a_body_without_a_sentence_still_says_something() -> None:
    assert from_body({"error": {"code": "Overloaded"}}).message == Overloaded.__doc__
    assert from_body({}).message


@pytest.mark.parametrize("wait", [math.nan, math.inf, -1, 10**400, "soon", None, [1]])
def test_a_senseless_wait_is_no_wait(wait: object) -> None:
    assert from_body({"error": {"message": "no", "code": "Overloaded", "retry_after": wait}}).retry_after is None
