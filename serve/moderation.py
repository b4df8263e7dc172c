"""The operator's moderation, where there is one: questions are judged before a worker sees them, answers at their end.

A judge is any server with OpenAI's `/v1/moderations`, or a function of the operator's own. Off unless asked for.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from pydantic import TypeAdapter

from llava_core.chat_protocol import as_unfinished_turn
from llava_core.config import ModerationLimits
from llava_core.errors import BadRequest, ContentRefused, ModerationFailed
from llava_core.types import Chunk, Message, Request
from serve.http_session import HttpSession

log = logging.getLogger(__name__)

KEY = "LLAVA_SERVE_MODERATION_KEY"
_MOST_CATEGORIES = 20

Classifier = Callable[[str, Sequence[str]], Any]
"""Text and the URLs of pictures to the names of the categories that they fall under, none where all is well; may be
a coroutine function."""

Ask = Callable[[Request], AsyncIterator[Chunk]]
"""Sends a request on its way and streams the answer."""


class Judge(Protocol):
    async def categories(self, text: str, pictures: Sequence[str]) -> Collection[str]:
        """What is wrong with it. Raises any exception when it cannot tell."""
        ...

    async def aclose(self) -> None: ...


class ModerationServer:
    """OpenAI's moderation protocol; `key` is shown where it is not empty."""

    def __init__(self, url: str, key: str = "", model: str = "", limits: ModerationLimits | None = None) -> None:
        limits = limits or ModerationLimits()
        self._url, self._model = url, model
        headers = {"Authorization": f"Bearer {key}"} if key else None
        self._http = HttpSession(connect_s=limits.judge_s, headers=headers)

    async def categories(self, text: str, pictures: Sequence[str]) -> Collection[str]:
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        parts += [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        # A bare string where it is all text: not every server of this protocol knows parts.
        body: dict[str, Any] = {"input": parts if pictures else text}
        if self._model:
            body["model"] = self._model
        answer = await self._http.send("POST", self._url, _ANY.dump_json(body), {"Content-Type": "application/json"})
        try:
            if answer.status != 200:
                raise ModerationFailed(f"the moderation server answered with HTTP {answer.status}")
            said = _SAID.validate_json(await answer.read())
        finally:
            answer.close()
        if not said.results:
            raise ModerationFailed("the moderation server gave no verdict")
        return _found(said.results)

    async def aclose(self) -> None:
        await self._http.aclose()


class LocalClassifier:
    """A function in this process, in a thread of its own unless it is a coroutine function."""

    def __init__(self, classify: Classifier) -> None:
        self._classify = classify

    async def categories(self, text: str, pictures: Sequence[str]) -> Collection[str]:
        if inspect.iscoroutinefunction(self._classify):
            found = await self._classify(text, pictures)
        else:
            found = await asyncio.to_thread(self._classify, text, pictures)
        if isinstance(found, Mapping):
            return [str(name) for name, hit in cast("Mapping[Any, Any]", found).items() if hit]
        return [str(name) for name in found or ()]

    async def aclose(self) -> None:
        pass


class Moderation:
    """Judges requests on the way in and marks answers on the way out. With `fail_open` a judge that fails lets
    everything pass; with `hold_answers` nobody sees an answer before it was judged whole. `events` counts what came of
    it."""

    def __init__(
        self,
        judge: Judge,
        *,
        fail_open: bool = False,
        hold_answers: bool = False,
        limits: ModerationLimits | None = None,
    ) -> None:
        self._judge, self._fail_open, self._hold_answers = judge, fail_open, hold_answers
        self._limits = limits or ModerationLimits()
        self.events: Counter[str] = Counter()
        # What was found harmless, by hash: the earlier turns of a chat come again with every question.
        self._harmless: OrderedDict[bytes, None] = OrderedDict()

    async def stream(self, ask: Ask, request: Request) -> AsyncGenerator[Chunk]:
        """The answer of `ask`. Raises ContentRefused or ModerationFailed before it is asked, and where answers are held
        back, before any of it."""
        # What an answer is to begin with may be anybody's words.
        before = as_unfinished_turn(request)
        begun = request.begun.text if request.begun else ""
        found = await self._judged(request.id, [message for message in before.messages if _digest(message)])
        if found:
            self.events["moderation_refused"] += 1
            log.warning("request %s: refused by moderation: %s", request.id, ", ".join(map(ascii, found)))
            raise ContentRefused(f"content refused by the operator's moderation: {', '.join(found)}", param="messages")
        said: list[Chunk] = []
        async with aclosing(cast("_Closable", ask(request))) as chunks:
            async for chunk in chunks:
                said.append(chunk)
                if chunk.finish_reason is not None:
                    found = await self._judged_answer(request.id, begun + "".join(each.text for each in said))
                    chunk = replace(chunk, flagged=tuple(found))
                if not self._hold_answers:
                    yield chunk
        if self._hold_answers:
            for chunk in said:
                yield chunk

    async def aclose(self) -> None:
        await self._judge.aclose()

    async def _judged_answer(self, request_id: str, text: str) -> Collection[str]:
        try:
            found = await self._ask(request_id, text, ()) if text.strip() else ()
        except ModerationFailed:
            # Where the reader has it already, a judge who fails now changes nothing.
            if self._hold_answers and not self._fail_open:
                raise
            return ()
        if found:
            what = "withheld" if self._hold_answers else "flagged"
            self.events[f"moderation_{what}"] += 1
            log.warning("request %s: answer %s by moderation: %s", request_id, what, ", ".join(map(ascii, found)))
        if found and self._hold_answers:
            raise ContentRefused(f"the answer was withheld by the operator's moderation: {', '.join(found)}")
        return found

    async def _judged(self, request_id: str, messages: Sequence[Message]) -> Collection[str]:
        fresh = {digest: message for message in messages if (digest := _digest(message)) not in self._harmless}
        if not fresh:
            return ()
        text = "\n\n".join(message.text for message in fresh.values() if message.text)
        pictures = [image.url for message in fresh.values() for image in message.images]
        try:
            found = await self._ask(request_id, text, pictures)
        except ModerationFailed:
            if self._fail_open:
                return ()
            raise
        if not found:
            for digest in fresh:
                self._harmless[digest] = None
            while len(self._harmless) > self._limits.remembered:
                self._harmless.popitem(last=False)
        return found

    async def _ask(self, request_id: str, text: str, pictures: Sequence[str]) -> Collection[str]:
        try:
            async with asyncio.timeout(self._limits.judge_s):
                found = await self._judge.categories(text, pictures)
        except Exception as cause:
            # Whatever a classifier of the operator's own fails with, chats must not go on unjudged for it.
            self.events["moderation_failed"] += 1
            log.warning("request %s: moderation failed: %r", request_id, cause)
            raise ModerationFailed(
                "the operator's moderation cannot be asked just now; try again in a moment", retry_after=5.0
            ) from None
        return [name[:80] for name in found][:_MOST_CATEGORIES]


def named_classifier(name: str) -> Classifier:
    """The function called `module:function`. Raises BadRequest where there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadRequest(f"--moderation-classifier {name!r} cannot be imported: {error}") from None
    if not callable(found):
        raise BadRequest(f"--moderation-classifier {name!r} is no function; name one as module:function")
    return cast(Classifier, found)


def _digest(message: Message) -> bytes:
    """Empty for a message without anything in it."""
    if not message.parts:
        return b""
    digest = hashlib.sha256(message.text.encode("utf-8", "surrogatepass"))
    for image in message.images:
        digest.update(b"\0" + hashlib.sha256(image.url.encode("utf-8", "surrogatepass")).digest())
    return digest.digest()


@dataclass(frozen=True)
class _Result:
    flagged: bool
    categories: dict[str, bool | None] | None = None


@dataclass(frozen=True)
class _Said:
    results: list[_Result]


def _found(results: Sequence[_Result]) -> list[str]:
    flagged = [result for result in results if result.flagged]
    names = sorted({name for result in flagged for name, hit in (result.categories or {}).items() if hit})
    return names or (["unnamed"] if flagged else [])


_SAID = TypeAdapter(_Said)
_ANY = TypeAdapter(dict[str, Any])


class _Closable(AsyncIterator[Chunk]):
    async def aclose(self) -> None: ...
