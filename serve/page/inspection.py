"""What the Inspect tab asks: how a model reads a picture and a question, its answer token by token, where it looked.

Every message is complete in itself (model, pictures, question, and for a look the answer's tokens), so nothing is kept
here between two of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

from llava_core.errors import BadRequest, LlavaError
from llava_core.inspection import SeenAttention, SeenPrompt
from llava_core.types import Begun, Chunk, Request, Sampling, TextPart, TokenLogprob, user
from serve.page.messages import read_owner
from serve.page.pictures import PictureDesk
from serve.page.source import AnswerSource

Message = Mapping[str, Any]

ALTERNATIVES = 5
MOST_TOKENS = 256
LONGEST_QUESTION = 20_000
UPDATE_S = 0.25


class Inspector(Protocol):
    """`serve.remote_inspector.RemoteInspector`, as seen from here."""

    async def look(self, request: Request) -> SeenPrompt: ...

    async def attend(self, request: Request, first: int, count: int) -> SeenAttention: ...


@runtime_checkable
class Inspectable(Protocol):
    """A source of answers whose models can be looked into."""

    @property
    def inspector(self) -> Inspector: ...


@dataclass(frozen=True)
class _Answer:
    """What has come of an answer."""

    text: str = ""
    ids: tuple[int, ...] = ()
    tokens: tuple[TokenLogprob, ...] = ()
    finish: str = ""

    def after(self, chunk: Chunk) -> _Answer:
        return _Answer(
            self.text + chunk.text,
            self.ids + chunk.token_ids,
            self.tokens + chunk.logprobs,
            chunk.finish_reason or "",
        )


class Inspections:
    """Looks into the models of one source, with the pictures that the desk takes in."""

    def __init__(self, source: AnswerSource, desk: PictureDesk) -> None:
        self._source = source
        self._desk = desk

    async def look(self, message: Message) -> dict[str, Any]:
        """How the model reads the picture and the question. Raises LlavaError."""
        seen = await self._inspector().look(await self._request(message))
        return asdict(seen)

    async def attend(self, message: Message) -> dict[str, Any]:
        """Where it looked as it chose tokens `first` to `first + count` of the answer in `text` and `ids`."""
        request = replace(await self._request(message), begun=_begun(message))
        seen = await self._inspector().attend(request, _whole(message, "first"), _whole(message, "count"))
        return asdict(seen)

    async def ask(self, message: Message) -> AsyncIterator[dict[str, Any]]:
        """The answer as it grows, with each token's probability and what else it might have been."""
        run = _run(message)
        answer, shown_at = _Answer(), 0.0
        try:
            request = await self._request(message)
            async with aclosing(cast("AsyncGenerator[Chunk]", self._source.stream(request))) as chunks:
                async for chunk in chunks:
                    answer = answer.after(chunk)
                    if time.monotonic() - shown_at >= UPDATE_S and not answer.finish:
                        shown_at = time.monotonic()
                        yield _shown(run, answer, "streaming")
            texts = await self._texts(request, answer)
            yield _shown(run, answer, "done", texts)
        except LlavaError as error:
            yield {**_shown(run, answer, "failed"), "error": error.message}

    def refused(self, message: Message, error: LlavaError) -> dict[str, Any]:
        """What `ask` ends with, for an answer that may not even begin."""
        return {**_shown(_run(message), _Answer(), "failed"), "error": error.message}

    async def _texts(self, request: Request, answer: _Answer) -> tuple[str, ...]:
        """What each token of the answer adds to its text, where the engine tells; else none."""
        if not (answer.ids and answer.text and isinstance(self._source, Inspectable)):
            return ()
        try:
            async with asyncio.timeout(10):
                seen = await self._source.inspector.look(replace(request, begun=Begun(answer.text, answer.ids)))
            return seen.answer
        except (LlavaError, TimeoutError):
            return ()

    def _inspector(self) -> Inspector:
        if not isinstance(self._source, Inspectable):
            raise BadRequest("what answers here does not tell what its models see")
        return self._source.inspector

    async def _request(self, message: Message) -> Request:
        text, model = str(message.get("text") or "").strip(), str(message.get("model") or "")
        if not model:
            raise BadRequest("choose a model first")
        if len(text) > LONGEST_QUESTION:
            raise BadRequest(f"the question has {len(text)} characters, more than {LONGEST_QUESTION}; shorten it")
        claims = message.get("pictures") or []
        if not isinstance(claims, list) or not all(isinstance(claim, Mapping) for claim in cast("list[Any]", claims)):
            raise BadRequest("the pictures did not arrive as they should; attach them again")
        pictures = await self._desk.accept(cast("list[Message]", claims)[:4])
        images = await self._desk.images(pictures)
        if not (text or pictures):
            raise BadRequest("choose a picture, or write a question")
        parts = [*(images[picture.path] for picture in pictures), *([TextPart(text)] if text else [])]
        sampling = Sampling(temperature=0.0, max_tokens=MOST_TOKENS, logprobs=ALTERNATIVES)
        return Request(model, (user(*parts),), sampling, owner=f"inspect/{read_owner(message)[:16]}")


def _shown(run: str, answer: _Answer, state: str, texts: tuple[str, ...] = ()) -> dict[str, Any]:
    """`texts` stand in the place of what single tokens would be on their own."""
    whole = texts if len(texts) >= len(answer.tokens) else ()
    return {
        "run": run,
        "state": state,
        "text": answer.text,
        "ids": list(answer.ids),
        "finish": answer.finish,
        "tokens": [
            {
                "text": whole[place] if whole else token.token,
                "logprob": round(max(token.logprob, -99.0), 4),
                "top": [[text, round(max(logprob, -99.0), 4)] for _, text, logprob in token.top[:ALTERNATIVES]],
            }
            for place, token in enumerate(answer.tokens)
        ],
    }


def _run(message: Message) -> str:
    """The browser's name for this answer, by which it tells it from earlier ones."""
    return str(message.get("run") or "")[:80]


def _begun(message: Message) -> Begun:
    ids, text = message.get("ids"), str(message.get("answer") or "")
    if not isinstance(ids, list) or not 1 <= len(cast("list[Any]", ids)) <= MOST_TOKENS + 1 or not text:
        raise BadRequest("the answer is missing; ask again")
    numbers = cast("list[Any]", ids)
    if not all(isinstance(one, int) and 0 <= one < 1 << 31 for one in numbers):
        raise BadRequest("the answer's tokens are not numbers; ask again")
    return Begun(text[:1_000_000], tuple(cast("list[int]", numbers)))


def _whole(message: Message, name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int) or not 0 <= value < 1 << 20:
        raise BadRequest(f"{name} must be the number of a token")
    return value
