"""The OpenAI answer on the wire: events from chunks, chunks from events, ours and other servers'."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_core.chat_events import (
    DONE,
    AnswerHead,
    ChunkEvents,
    ChunkReader,
    chunk_event,
    completion,
    error_event,
    read_chunks,
    sse,
    usage_event,
)
from llava_core.errors import BadImage, EngineFailure, LlavaError, Overloaded, WorkerLost
from llava_core.types import Chunk, TokenLogprob, Usage

HEAD = AnswerHead("chatcmpl-1", "m", created=1)


async def _each(events: Sequence[str]) -> AsyncIterator[str]:
    for event in events:
        yield event


async def chunks_of(*events: dict[str, Any] | str) -> list[Chunk]:
    data = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return [chunk async for chunk in read_chunks(_each(data))]


def events_of(chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    events = [chunk_event(HEAD, chunk, first=number == 0) for number, chunk in enumerate(chunks)]
    usage = chunks[-1].usage
    return [*events, *([usage_event(HEAD, usage)] if usage else [])]


async def test_chunks_survive_the_wire():
    token = TokenLogprob(5, "é", -0.5, ((5, "é", -0.5), (6, "e", -1.5)))
    chunks = [
        Chunk("He said: "),
        Chunk("é", logprobs=(token,)),
        Chunk(" end", finish_reason="length", usage=Usage(10, 3, image_tokens=4, cached_tokens=2)),
    ]
    assert await chunks_of(*events_of(chunks), DONE) == chunks


@given(st.text())
def test_an_event_is_one_line_of_ascii_whatever_the_text(text: str):
    raw = sse(chunk_event(HEAD, Chunk(text), first=False))
    assert raw.startswith(b"data: ")
    assert raw.endswith(b"\n\n")
    assert raw.isascii()
    assert raw.count(b"\n") == 2
    assert json.loads(raw[6:])["choices"][0]["delta"].get("content", "") == text


def test_the_first_event_names_the_role():
    assert chunk_event(HEAD, Chunk("a"), first=True)["choices"][0]["delta"] == {"role": "assistant", "content": "a"}
    assert chunk_event(HEAD, Chunk("a"), first=False)["choices"][0]["delta"] == {"content": "a"}


def test_chunks_join_into_one_completion():
    answer = completion(HEAD, [Chunk("a"), Chunk("b"), Chunk(finish_reason="stop", usage=Usage(4, 2))])
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "ab"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 6
    with pytest.raises(WorkerLost):
        completion(HEAD, [Chunk("a")])


def test_a_probability_of_nothing_can_be_written():
    event = chunk_event(HEAD, Chunk("a", logprobs=(TokenLogprob(1, "a", -math.inf),)), first=False)
    assert b"-9999" in sse(event)


@pytest.mark.parametrize(
    "error",
    [BadImage("too wide", param="messages"), Overloaded("full", retry_after=3.5), EngineFailure("x", request_id="r")],
)
async def test_an_error_in_the_stream_keeps_its_class(error: LlavaError):
    with pytest.raises(type(error)) as caught:
        await chunks_of(*events_of([Chunk("a")]), error_event(error))
    assert caught.value.to_body() == error.to_body()


async def test_a_stream_that_just_ends_is_a_lost_worker():
    with pytest.raises(WorkerLost):
        await chunks_of(*events_of([Chunk("a")]))
    with pytest.raises(WorkerLost):
        await chunks_of(*events_of([Chunk("a")]), DONE)
    with pytest.raises(WorkerLost):
        await chunks_of()


@pytest.mark.parametrize("event", ["{", "3", "[]", '{"choices": [3]}', '{"choices": [{"delta": 3}]}', "[" * 100_000])
async def test_an_event_that_makes_no_sense_is_a_lost_worker(event: str):
    with pytest.raises(WorkerLost):
        await chunks_of(event)


async def test_other_servers_events_are_understood():
    """A role without text first, reasons of their own, usage in an event by itself or in none."""
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}
    text = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}], "usage": None}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": None}}
    assert await chunks_of(role, text, end, DONE) == [Chunk("a"), Chunk(finish_reason="stop")]
    assert await chunks_of(role, text, end, usage) == [Chunk("a"), Chunk(finish_reason="stop", usage=Usage(3, 1))]


def test_a_piece_of_text_is_written_as_any_other_chunk_is():
    head = AnswerHead('x"\\u0000', 'a "model" \u2028', 1)
    texts = ["a", "", 'quote " and \\ and \0', "\u2028é\U0001f600", "\n\n"]
    chunks = [Chunk(text, index=index) for index in (0, 1, 0) for text in texts]
    chunks += [Chunk("b", logprobs=(TokenLogprob(1, "b", -0.5),)), Chunk(finish_reason="stop")]
    events, named = ChunkEvents(head), set[int]()
    for chunk in chunks:
        assert events.write(chunk) == sse(chunk_event(head, chunk, first=chunk.index not in named))
        named.add(chunk.index)


def _event(delta: str, rest: str = "", finish: str = "null") -> str:
    return f'{{"id":"a","choices":[{{"index":0,"delta":{{{delta}}},"finish_reason":{finish}}}]{rest}}}'


def test_events_that_are_alike_but_for_their_text_are_read_as_any_other():
    texts = ["a", '"', '"}', "\\", "\ud83d", "é\u2028", "a", "null", " "]
    alike = [_event(f'"role":"assistant","content":{json.dumps("Hi")}')]
    alike += [
        _event(f'"content":{json.dumps(text, ensure_ascii=bool(number % 2))}') for number, text in enumerate(texts)
    ]
    reader = ChunkReader()
    assert [reader.take(event) for event in alike] == [Chunk(text) for text in ("Hi", *texts)]
    # The same beginning and end with more between them, or with no text.
    assert reader.take(_event('"content":"x","content":"y"')) == Chunk("y")
    assert reader.take(_event('"content":null')) is None
    assert reader.take(_event('"content":""')) is None
    with pytest.raises(WorkerLost):
        reader.take(_event('"content":"x" "y"'))
    assert (
        reader.take(_event('"content":"end"', ',"usage":{"prompt_tokens":1,"completion_tokens":2}', '"stop"')) is None
    )
    assert reader.take(_event('"content":"."')) is None
    assert reader.end() == Chunk("end.", "stop", Usage(1, 2))


def test_text_that_also_stands_elsewhere_in_its_event_is_not_confused():
    """The model is called like the word it says."""
    names = ["a", "b", "c", "d"]
    reader = ChunkReader()
    events = [f'{{"choices":[{{"delta":{{"content":"{name}"}}}}],"model":"{name}"}}' for name in names]
    assert [reader.take(event) for event in events] == [Chunk(name) for name in names]
