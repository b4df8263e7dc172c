"""The OpenAI request on the wire: what is read, what is written, what is refused and in which words."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_core.chat_messages import read_messages, write_message
from llava_core.chat_protocol import read_call, write_call
from llava_core.config import RequestLimits
from llava_core.errors import BadRequest
from llava_core.types import Grammar, ImagePart, Message, Request, Sampling, TextPart, assistant, system, user

HI = [{"role": "user", "content": "hi"}]


def read(**fields: Any) -> Request:
    return read_call(json.dumps({"model": "m", "messages": HI, **fields}).encode()).request


texts = st.text(max_size=30)
parts = st.one_of(texts.map(TextPart), texts.filter(bool).map(ImagePart))
messages = st.builds(Message, st.sampled_from(("system", "user", "assistant")), st.lists(parts, max_size=4).map(tuple))
small = st.floats(0, 1)
samplings = st.builds(
    Sampling,
    max_tokens=st.none() | st.integers(50, 1 << 20),
    temperature=st.floats(0, 2),
    top_p=small,
    top_k=st.integers(0, 1000),
    min_p=small,
    repetition_penalty=st.floats(0.5, 2),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    seed=st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
    stop=st.lists(st.text(min_size=1, max_size=9), max_size=4).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 1 << 20), max_size=4).map(tuple),
    min_tokens=st.integers(0, 50),
    ignore_eos=st.booleans(),
    logit_bias=st.dictionaries(st.integers(0, 99_999), st.floats(-100, 100), max_size=4),
    logprobs=st.none() | st.integers(0, 20),
)


@given(st.lists(messages, max_size=4), st.lists(parts, max_size=4), samplings, st.booleans(), st.booleans(), texts)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_request_survives_the_wire(
    before: list[Message], last: list[Any], sampling: Sampling, continued: bool, stream: bool, owner: str
):
    final = Message("assistant" if continued else "user", tuple(last))
    request = Request("m", (*before, final), sampling, continue_final=continued, owner=owner)
    call = read_call(write_call(request, stream=stream), request_id=request.id)
    assert call.request == request
    assert (call.stream, call.include_usage) == (stream, stream)


@given(messages)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_message_survives_the_wire(message: Message):
    assert read_messages([json.loads(json.dumps(write_message(message)))]) == (message,)


field_names = st.sampled_from(
    ("model", "messages", "role", "content", "type", "text", "image_url", "url", "stop", "n", "seed", "logit_bias")
)
any_json = st.recursive(
    st.none() | st.booleans() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(field_names, inner, max_size=5),
    max_leaves=15,
)


@given(any_json)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_either_a_request_or_a_bad_request(body: Any):
    raw = json.dumps(body).encode()
    wrapped = json.dumps({"model": "m", "messages": body, "stop": body, "logit_bias": body}).encode()
    for each in (raw, wrapped):
        with contextlib.suppress(BadRequest):
            read_call(each)


@given(st.binary(max_size=200))
def test_any_bytes_are_either_a_request_or_a_bad_request(raw: bytes):
    with pytest.raises(BadRequest):
        read_call(raw)


def test_content_may_be_a_string_or_parts_and_images_an_object_or_a_url():
    request = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "name": "ignored",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:,a", "detail": "high"}},
                    {"type": "image_url", "image_url": "data:,b"},
                    {"type": "text", "text": "What?"},
                ],
            },
            {"role": "assistant", "content": "This."},
            {"role": "user", "content": ["Why?"]},
        ]
    )
    assert request.messages == (
        system("Be brief."),
        user(ImagePart("data:,a"), ImagePart("data:,b"), "What?"),
        assistant("This."),
        user("Why?"),
    )


def test_fields_that_are_absent_or_null_or_unknown_leave_the_defaults():
    nulls = dict.fromkeys(("temperature", "top_p", "max_tokens", "stop", "seed", "n", "stream", "stream_options"))
    assert read(**nulls, store=True, metadata={"a": 1}, parallel_tool_calls=False).sampling == Sampling()


def test_every_sampling_field_is_taken():
    sampling = read(
        max_tokens=5,
        max_completion_tokens=7,
        temperature=1,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1,
        frequency_penalty=2,
        seed=-4,
        stop="END",
        stop_token_ids=[2],
        min_tokens=1,
        ignore_eos=True,
        logit_bias={"17": -100},
        logprobs=True,
        top_logprobs=4,
    ).sampling
    assert sampling == Sampling(
        max_tokens=7,
        temperature=1.0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        seed=-4,
        stop=("END",),
        stop_token_ids=(2,),
        min_tokens=1,
        ignore_eos=True,
        logit_bias={17: -100.0},
        logprobs=4,
    )


def test_logprobs_without_alternatives_and_continuing_and_owner():
    assert read(logprobs=True).sampling.logprobs == 0
    request = read(
        messages=[*HI, {"role": "assistant", "content": "I th"}],
        continue_final_message=True,
        add_generation_prompt=False,
        user="somebody",
    )
    assert (request.continue_final, request.owner) == (True, "somebody")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [3]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]},
        "messages[0].content[0].image_url",
    ),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**18}, "max_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"max_tokens": [1]}, "max_tokens"),
    ({"seed": 10**30}, "seed"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", 3]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": "x" * 300}, "stop"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids.0"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"²": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 1000}}, "logit_bias"),
    ({"logit_bias": []}, "logit_bias"),
    ({"n": 9}, "n"),
    ({"n": 0}, "n"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "{}"}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs"),
    ({"structured_outputs": {"regex": ["a"]}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
    ({"continue_final_message": True}, "messages"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"add_generation_prompt": False}, "add_generation_prompt"),
    ({"user": 7}, "user"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[json.dumps(fields)[:60] for fields, _ in BAD])
def test_a_wrong_field_is_refused_by_name(fields: dict[str, Any], param: str):
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.param == param
    assert len(caught.value.message) < 300
    assert "pydantic" not in caught.value.message


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"model": "m", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"model": "m", "temperature": NaN, "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "m", "temperature": -Infinity, "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "m", "temperature": 1e999, "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "m", "seed": ' + b"9" * 10_000 + b', "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}',
    ],
    ids=["empty", "null", "list", "half", "deep", "nan", "inf", "1e999", "digits", "surrogate", "not-utf8"],
)
def test_a_body_that_is_no_request_is_refused(raw: bytes):
    with pytest.raises(BadRequest):
        read_call(raw)


def test_limits_hold_for_text_and_messages_but_pictures_are_not_text():
    limits = RequestLimits(max_text_chars=100, max_messages=3)

    def call(messages: list[Any]) -> Request:
        return read_call(json.dumps({"model": "m", "messages": messages}).encode(), limits=limits).request

    picture = {"type": "image_url", "image_url": "data:image/png;base64," + "A" * 5000}
    assert call([{"role": "user", "content": [picture, {"type": "text", "text": "x" * 100}]}])
    with pytest.raises(BadRequest, match="101 characters"):
        call([{"role": "user", "content": [{"type": "text", "text": "x" * 100}, "y"]}])
    with pytest.raises(BadRequest, match="4 messages"):
        call(HI * 4)


def test_a_body_of_nothing_but_brackets_is_refused_before_it_is_built():
    with pytest.raises(BadRequest, match="commas and brackets"):
        read_call(b'{"messages": [' + b"{}," * 300_000 + b"{}]}")


def test_half_a_surrogate_pair_cannot_be_sent():
    with pytest.raises(BadRequest):
        write_call(Request("m", (user("\ud800"),)))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_object"),
        Grammar("json_schema", '{"type":"object","properties":{"ü":{"enum":["b","a"]},"a":{"type":"null"}}}'),
        Grammar("regex", r"(ja|nein), \d{2}"),
    ],
    ids=lambda grammar: grammar.kind,
)
def test_the_form_of_an_answer_comes_back_as_it_was(grammar: Grammar):
    written = write_call(Request("m", (user("hi"),), Sampling(grammar=grammar)))
    assert read_call(written).request.sampling.grammar == grammar
    fields = json.loads(written)
    assert len({"response_format", "structured_outputs"} & fields.keys()) == 1


def test_plain_text_is_no_form_and_n_is_one_unless_said():
    call = read_call(json.dumps({"model": "m", "messages": HI, "response_format": {"type": "text"}}).encode())
    assert call.request.sampling.grammar is None
    assert call.n == 1
    assert read_call(json.dumps({"model": "m", "messages": HI, "n": 8}).encode()).n == 8
