"""The OpenAI chat-completions answer, both ways: chunks to server-sent events or to one completion, and events
back to chunks.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from llava_core.errors import LlavaError, WorkerLost, from_body
from llava_core.types import Chunk, FinishReason, TokenLogprob, Usage

Json = dict[str, Any]

DONE = "[DONE]"
_JSON = json.JSONDecoder()
_IDS = re.compile(r'([^\[\]]*),"token_ids":\[(\d{1,10}(?:,\d{1,10})*)\](\}\].*)')
_IDS_IN = re.compile(r',"token_ids":\[\d+(?:,\d+)*\](?=\}\])')
"""The ids of an event, at the end of its choice: among what stands behind its text, and by themselves."""
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write; the number OpenAI uses."""


@dataclass(frozen=True)
class AnswerHead:
    """What every event of one answer repeats."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))


def sse(data: Json | str) -> bytes:
    """One server-sent event. ASCII only: some readers split lines at U+2028 and U+0085 too."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), allow_nan=False)
    return b"data: " + text.encode("ascii") + b"\n\n"


class ChunkEvents:
    """The events of one answer's chunks, as `sse(chunk_event(…))` writes them. Most chunks are a piece of text and
    nothing else, so what surrounds it is written once."""

    def __init__(self, head: AnswerHead, *, with_ids: bool = False) -> None:
        self._head = head
        self._with_ids = with_ids
        self._named: set[int] = set()
        before, _, after = sse(chunk_event(head, Chunk("\0"), first=False)).rpartition(_json_text("\0"))
        self._around = (before, after)
        # Where the ids of a chunk stand: at the end of its choice.
        self._end = after.rpartition(b"}]")

    def write(self, chunk: Chunk) -> bytes:
        if chunk.finish_reason is None and chunk.text and not chunk.logprobs and chunk.index == 0 and 0 in self._named:
            before, after = self._around
            if self._with_ids and chunk.token_ids:
                until, bracket, rest = self._end
                ids = ",".join(map(str, chunk.token_ids)).encode("ascii")
                after = b'%b,"token_ids":[%b]%b%b' % (until, ids, bracket, rest)
            return before + _json_text(chunk.text) + after
        first = chunk.index not in self._named
        self._named.add(chunk.index)
        return sse(chunk_event(self._head, chunk, first=first, with_ids=self._with_ids))


def chunk_event(head: AnswerHead, chunk: Chunk, *, first: bool, with_ids: bool = False) -> Json:
    """A `chat.completion.chunk`; the first of an answer names the role. `token_ids` stand where vLLM puts them."""
    delta: Json = {"role": "assistant"} if first else {}
    if chunk.text or first:
        delta["content"] = chunk.text
    choice: Json = {
        "index": chunk.index,
        "delta": delta,
        "logprobs": _write_logprobs(chunk.logprobs),
        "finish_reason": chunk.finish_reason,
    }
    if with_ids and chunk.token_ids:
        choice["token_ids"] = list(chunk.token_ids)
    if chunk.flagged:
        choice["moderation"] = _write_flags(chunk.flagged)
    return {**_frame(head, "chat.completion.chunk"), "choices": [choice]}


def usage_event(head: AnswerHead, usage: Usage) -> Json:
    """The event without choices that tells the token counts, last before the end."""
    return {**_frame(head, "chat.completion.chunk"), "choices": [], "usage": _write_usage(usage)}


def error_event(error: LlavaError) -> Json:
    """What stands in the stream instead of the rest, when an answer breaks off."""
    return error.to_body()


def completion(head: AnswerHead, chunks: Sequence[Chunk]) -> Json:
    """The whole answer as one `chat.completion`, or several. Raises WorkerLost when the chunks of one have no end."""
    indices = sorted({chunk.index for chunk in chunks}) or [0]
    choices = [_choice(index, [chunk for chunk in chunks if chunk.index == index]) for index in indices]
    usage = None if chunks[-1].usage is None else _write_usage(chunks[-1].usage)
    return {**_frame(head, "chat.completion"), "choices": choices, "usage": usage}


def _choice(index: int, chunks: Sequence[Chunk]) -> Json:
    last = chunks[-1] if chunks else Chunk()
    if last.finish_reason is None:
        raise WorkerLost("the answer broke off before its end; send the request again")
    flagged = {"moderation": _write_flags(last.flagged)} if last.flagged else {}
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(chunk.text for chunk in chunks)},
        "logprobs": _write_logprobs([token for chunk in chunks for token in chunk.logprobs]),
        "finish_reason": last.finish_reason,
        **flagged,
    }


def _write_flags(categories: Sequence[str]) -> Json:
    """What the operator's moderation says about a whole answer; other clients pass over it."""
    return {"flagged": True, "categories": list(categories)}


class ChunkReader:
    """The chunks that the `data` of server-sent events describe, one event at a time.

    The end is held back until the usage behind it has come, so that the last chunk carries both.
    """

    def __init__(self) -> None:
        self._end: Chunk | None = None
        self._around: tuple[str, str] | None = None
        # The first event differs from those that follow, since it names the role.
        self._to_learn_from = 2
        self.done = False
        """Whether the event was there behind which nothing comes."""

    def take(self, data: str) -> Chunk | None:
        """What an event adds, if anything. Raises the error it describes, and WorkerLost if it describes nothing."""
        if data == DONE:
            self.done = True
            return None
        if self._end is None and (plain := self._only_text(data)) is not None:
            return plain
        chunk, end = _read_event(data), self._end
        if self._to_learn_from and chunk.text and end is None:
            self._to_learn_from -= 1
            self._around = _around_text(data, chunk)
        if chunk.finish_reason is not None:
            self._end = chunk
        elif end is not None:
            text, ids = end.text + chunk.text, end.token_ids + chunk.token_ids
            self._end = replace(end, text=text, usage=chunk.usage or end.usage, token_ids=ids)
        elif chunk.text or chunk.logprobs:
            return chunk
        return None

    def _only_text(self, data: str) -> Chunk | None:
        """The chunk of an event that is an earlier one with other text (and ids) in its place, which most are."""
        if self._around is None:
            return None
        before, after = self._around
        if not data.startswith(before):
            return None
        try:
            text, end = _JSON.raw_decode(data, len(before))
        except ValueError:
            return None
        if not text or not isinstance(text, str):
            return None
        if data.endswith(after) and end == len(data) - len(after):
            return Chunk(text)
        ids = _IDS.fullmatch(data, end)
        if ids is None or ids[1] + ids[3] != after:
            return None
        return Chunk(text, token_ids=tuple(map(int, ids[2].split(","))))

    def end(self) -> Chunk:
        """The last chunk. Raises WorkerLost where the events stopped before it."""
        if self._end is None:
            raise WorkerLost("the worker's stream ended before the answer did; send the request again")
        return self._end


async def read_chunks(events: AsyncIterator[str]) -> AsyncGenerator[Chunk]:
    """All chunks of one answer. Raises what `ChunkReader` does."""
    reader = ChunkReader()
    async for data in events:
        chunk = reader.take(data)
        if chunk is not None:
            yield chunk
        if reader.done:
            break
    yield reader.end()


def _around_text(data: str, chunk: Chunk) -> tuple[str, str] | None:
    """What stands before and behind the text of an event, its quotes included, were it without ids; None where another
    text in that place would not just be another text."""
    if chunk.token_ids:
        without = _IDS_IN.sub("", data)
        plain = replace(chunk, token_ids=())
        return None if without == data or _read_event(without) != plain else _around_text(without, plain)
    written = json.dumps(chunk.text)
    before, found, after = data.rpartition(written)
    if not found:
        written = json.dumps(chunk.text, ensure_ascii=False)
        before, found, after = data.rpartition(written)
    other = chunk.text + "."
    try:
        same_but_for_it = _read_event(before + json.dumps(other) + after) == replace(chunk, text=other)
    except LlavaError:
        return None
    plain = chunk == Chunk(chunk.text)
    return (before, after) if found and plain and same_but_for_it else None


def _json_text(text: str) -> bytes:
    return json.dumps(text).encode("ascii")


def _frame(head: AnswerHead, kind: str) -> Json:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model}


def _write_usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
    }


def _write_logprobs(tokens: Sequence[TokenLogprob]) -> Json | None:
    if not tokens:
        return None
    return {
        "content": [
            {
                **_write_logprob(token.token_id, token.token, token.logprob),
                "top_logprobs": [_write_logprob(*alternative) for alternative in token.top],
            }
            for token in tokens
        ]
    }


def _write_logprob(token_id: int, token: str, logprob: float) -> Json:
    octets = list(token.encode("utf-8", "replace"))
    return {"token": token, "token_id": token_id, "logprob": max(logprob, LEAST_LOGPROB), "bytes": octets}


def _read_event(data: str) -> Chunk:
    try:
        event = _object(json.loads(data))
        if event.get("error") is not None or event.get("object") == "error":
            raise from_body(event)
        choices = cast(Sequence[Any], event.get("choices") or ())
        usage = _read_usage(event.get("usage"))
        if not choices:
            return Chunk(usage=usage)
        choice = _object(choices[0])
        delta = _object(choice.get("delta") or {})
        return Chunk(
            text=str(delta.get("content") or ""),
            finish_reason=_read_finish(choice.get("finish_reason")),
            usage=usage,
            logprobs=_read_logprobs(choice.get("logprobs")),
            token_ids=tuple(int(token) for token in choice.get("token_ids") or ()),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise WorkerLost("the worker sent an event that cannot be read; send the request again") from None


def _read_finish(reason: Any) -> FinishReason | None:
    """Other servers know more reasons (content_filter, tool_calls); all of them end the answer."""
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"


def _read_usage(given: Any) -> Usage | None:
    if given is None:
        return None
    counts = _object(given)
    details = _object(counts.get("prompt_tokens_details") or {})
    return Usage(
        prompt_tokens=int(counts.get("prompt_tokens") or 0),
        completion_tokens=int(counts.get("completion_tokens") or 0),
        image_tokens=int(details.get("image_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )


def _read_logprobs(given: Any) -> tuple[TokenLogprob, ...]:
    if given is None:
        return ()
    return tuple(
        TokenLogprob(
            *_read_logprob(token), top=tuple(_read_logprob(other) for other in token.get("top_logprobs") or ())
        )
        for token in map(_object, _object(given).get("content") or ())
    )


def _read_logprob(given: Mapping[str, Any]) -> tuple[int, str, float]:
    return int(given.get("token_id", -1)), str(given["token"]), float(given["logprob"])


def _object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    return cast(Json, value)
