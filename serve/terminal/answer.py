"""One answer on its way to a terminal or a pipe: written as it comes, timed, and summed up in a line."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from llava_core.errors import WorkerLost
from llava_core.types import Chunk, FinishReason, Request, Usage
from serve.terminal.source import Source

# What would move the cursor, recolour or rename a terminal; line breaks and tabs stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class Answer:
    """Grows while it streams, so that what came before an interruption is not lost. Times are in seconds."""

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    first_token_s: float | None = None
    took_s: float = 0.0


async def stream_answer(
    source: Source,
    request: Request,
    answer: Answer,
    write: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Stream into `answer`, passing each new piece to `write`. Cancelling this cancels the request where it runs."""
    began = clock()
    stream = source.stream(request)
    async with contextlib.AsyncExitStack() as stack:
        if (close := getattr(stream, "aclose", None)) is not None:
            stack.push_async_callback(close)
        async for chunk in stream:
            _take(answer, chunk, clock() - began)
            if chunk.text:
                write(chunk.text)
    if answer.finish_reason is None:
        raise WorkerLost("the answer broke off; ask again", request_id=request.id)


def _take(answer: Answer, chunk: Chunk, now_s: float) -> None:
    if chunk.text and answer.first_token_s is None:
        answer.first_token_s = now_s
    answer.text += chunk.text
    answer.finish_reason = chunk.finish_reason or answer.finish_reason
    answer.usage = chunk.usage or answer.usage
    answer.took_s = now_s


def figures(answer: Answer) -> str:
    """The status line: time to first token, speed, counts."""
    parts: list[str] = []
    if answer.first_token_s is not None:
        parts.append(f"first token {answer.first_token_s:.2f} s")
    if usage := answer.usage:
        if answer.first_token_s is not None and usage.completion_tokens > 1 and answer.took_s > answer.first_token_s:
            speed = (usage.completion_tokens - 1) / (answer.took_s - answer.first_token_s)
            parts.append(f"{speed:.1f} tokens/s")
        parts.append(f"{usage.completion_tokens} token{'' if usage.completion_tokens == 1 else 's'}")
        details = [f"{usage.image_tokens} of images"] if usage.image_tokens else []
        details += [f"{usage.cached_tokens} cached"] if usage.cached_tokens else []
        parts.append(f"prompt {usage.prompt_tokens}" + (f" ({', '.join(details)})" if details else ""))
    if answer.finish_reason == "length":
        parts.append("cut off at the token limit")
    return " · ".join(parts)


def harmless(text: str) -> str:
    """The text without characters that command a terminal instead of showing in it."""
    return _CONTROL.sub("", text)
