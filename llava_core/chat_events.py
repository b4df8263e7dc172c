"""The OpenAI chat-completions answer, both ways: chunks to server-sent events or to one completion, and events
back to chunks.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from llava_core.errors import LlavaError, WorkerLost, from_body
from llava_core.types import Chunk, FinishReason, TokenLogprob, Usage

Json = dict[str, Any]

DONE = "[DONE]"
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


def chunk_event(head: AnswerHead, chunk: Chunk, *, first: bool) -> Json:
    """A `chat.completion.chunk`; the first of an answer names the role."""
    delta: Json = {"role": "assistant"} if first else {}
    if chunk.text or first:
        delta["content"] = chunk.text
    choice: Json = {
        "index": chunk.index,
        "delta": delta,
        "logprobs": _write_logprobs(chunk.logprobs),
        "finish_reason": chunk.finish_reason,
    }
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
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(chunk.text for chunk in chunks)},
        "logprobs": _write_logprobs([token for chunk in chunks for token in chunk.logprobs]),
        "finish_reason": last.finish_reason,
    }


async def read_chunks(events: AsyncIterator[str]) -> AsyncGenerator[Chunk]:
    """The chunks that the `data` of server-sent events describe.

    The end is held back until the usage behind it has come, so that the last chunk carries both. Raises the
    error an event describes, and WorkerLost for events that are none or that stop before the end.
    """
    end: Chunk | None = None
    async for data in events:
        if data == DONE:
            break
        chunk = _read_event(data)
        if chunk.finish_reason is not None:
            end = chunk
        elif end is not None:
            end = Chunk(end.text + chunk.text, end.finish_reason, chunk.usage or end.usage, end.logprobs)
        elif chunk.text or chunk.logprobs:
            yield chunk
    if end is None:
        raise WorkerLost("the worker's stream ended before the answer did; send the request again")
    yield end


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
