"""A room holds one conversation and the answer on its way; readers come and go, the answer goes on.

A reader is one stream to a browser. When the last one has left, or none ever came, an answer still on its way is
stopped after a grace, so that a page that was only reloaded finds it again and a page that was closed frees the model's
slot.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

from llava_core.errors import ContextOverflow, EngineFailure, LlavaError, WorkerLost
from llava_core.types import Chunk, Request, Sampling, Usage
from serve.page import session
from serve.page.pictures import PictureDesk
from serve.page.session import Answer, Chat, Figures, Notice, Picture
from serve.page.source import AnswerSource

log = logging.getLogger(__name__)

Place = Callable[[], AbstractAsyncContextManager[None]]
"""Around an answer: one of those that whoever asks may have. Raises Overloaded where there is none."""


@dataclass(frozen=True)
class RoomTimings:
    """In seconds. `update_s` is about the least time between two looks a reader gets at a growing answer; `halt_s` is
    how long a stopped answer may take to let go of its worker."""

    update_s: float = 0.05
    grace_s: float = 10.0
    halt_s: float = 5.0


@dataclass(frozen=True)
class Settings:
    """What the person set for the answers to come."""

    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)


class Room:
    """Its methods belong to one event loop. Those that start or end an answer wait for each other."""

    def __init__(
        self,
        source: AnswerSource,
        pictures: PictureDesk,
        owner: str = "",
        timings: RoomTimings | None = None,
        clock: Callable[[], float] = time.monotonic,
        chat: Chat | None = None,
        keep: Callable[[Chat, Settings], None] | None = None,
    ) -> None:
        """`keep` is told of every state of the chat, at every token too, so it must cost nothing."""
        self.chat = chat or Chat()
        self.settings = Settings()
        self._keep = keep
        self.revision = 0
        self.form = 0
        """The revision since which nothing has changed but that the answer on its way has more text."""
        self.born = uuid.uuid4().hex
        self._source = source
        self._pictures = pictures
        self._owner = owner
        self._timings = timings or RoomTimings()
        self._clock = clock
        self._lock = asyncio.Lock()
        self._waiting: list[asyncio.Future[None]] = []
        self._answering: asyncio.Task[None] | None = None
        self._readers: set[str] = set()
        self._leaving: asyncio.TimerHandle | None = None

    @property
    def is_answering(self) -> bool:
        return self.chat.running is not None

    async def ask(
        self, text: str, pictures: tuple[Picture, ...], model: str, settings: Settings, place: Place = nullcontext
    ) -> None:
        async with self._lock:
            await self._halt()
            self._begin(session.ask(self.chat, text, pictures, model), settings, place)

    async def retry(self, model: str, settings: Settings, turn_id: str = "", place: Place = nullcontext) -> None:
        async with self._lock:
            await self._halt()
            self._begin(session.retry(self.chat, model, turn_id), settings, place)

    async def resume(self, settings: Settings, place: Place = nullcontext) -> None:
        async with self._lock:
            await self._halt()
            self._begin(session.resume(self.chat), settings, place)

    async def edit(
        self,
        turn_id: str,
        text: str,
        pictures: tuple[Picture, ...],
        model: str,
        settings: Settings,
        place: Place = nullcontext,
    ) -> None:
        async with self._lock:
            await self._halt()
            self._begin(session.edit(self.chat, turn_id, text, pictures, model), settings, place)

    async def become(self, chat: Chat, settings: Settings, place: Place = nullcontext) -> None:
        """Go on with another chat; the answer that waits in it, if one does, is asked for."""
        async with self._lock:
            await self._halt()
            self._begin(chat, settings, place)

    async def change(self, to: Callable[[Chat], Chat]) -> None:
        """Any other move: undo, restore. It ends an answer on its way."""
        async with self._lock:
            await self._halt()
            self._set(to(self.chat))

    async def stop(self) -> None:
        """End the answer on its way; what it has said stays."""
        async with self._lock:
            await self._halt()

    def mark(self, to: Callable[[Chat], Chat]) -> None:
        """A change that lets an answer go on: a rating, say."""
        self._set(to(self.chat))

    def refuse(self, error: LlavaError, text: str, pictures: tuple[Picture, ...], model: str) -> None:
        """A question that could not be asked at all still stands in the chat, with the reason beside it."""
        asked = session.ask(self.chat, text, pictures, model)
        answer = asked.turns[-1].answer.id
        self._set(session.update(asked, answer, state="failed", notice=session.notice_of(error)))

    async def follow(self, reader: str) -> AsyncIterator[Chat]:
        """The chat now and at every change while an answer is on its way; the reader stays until it leaves."""
        self._enter(reader)
        while True:
            seen, shown_at = self.revision, self._clock()
            yield self.chat
            if self.revision == seen:
                if not self.is_answering:
                    return
                changed = asyncio.get_running_loop().create_future()
                self._waiting.append(changed)
                await changed
            pause = shown_at + self._timings.update_s - self._clock()
            # What comes just before its time is shown at once rather than waited for with a timer.
            if pause > self._timings.update_s / 5 and self.is_answering:
                await asyncio.sleep(pause)

    def leave(self, reader: str) -> None:
        """This reader is gone."""
        self._readers.discard(reader)
        self._wait_for_readers()

    def keep_nothing(self) -> None:
        """From now on no state of the chat is kept: it was deleted."""
        self._keep = None

    async def aclose(self) -> None:
        if self._leaving:
            self._leaving.cancel()
        await self.stop()

    def _enter(self, reader: str) -> None:
        if self._leaving:
            self._leaving.cancel()
            self._leaving = None
        self._readers.add(reader)

    def _wait_for_readers(self) -> None:
        if not self._readers and self.is_answering and self._leaving is None:
            self._leaving = asyncio.get_running_loop().call_later(self._timings.grace_s, self._give_up)

    def _give_up(self) -> None:
        self._leaving = None
        if not self._readers and self._answering:
            self._answering.cancel()

    def _set(self, chat: Chat, *, grown: bool = False) -> None:
        self.chat = chat
        self.revision += 1
        if not grown:
            self.form = self.revision
        if self._keep:
            self._keep(chat, self.settings)
        waiting, self._waiting = self._waiting, []
        for reader in waiting:
            if not reader.done():
                reader.set_result(None)

    async def _halt(self) -> None:
        if self._answering:
            self._answering.cancel()
            await asyncio.wait({self._answering}, timeout=self._timings.halt_s)
            self._answering = None
        running = self.chat.running
        if running:  # cancelled before its first step, or its source does not let go
            self._set(session.update(self.chat, running.id, state="stopped"))

    def _begin(self, chat: Chat, settings: Settings, place: Place) -> None:
        self.settings = settings
        running = chat.running
        self._set(session.update(chat, running.id, parameters=_parameters(settings)) if running else chat)
        if running:
            self._answering = asyncio.create_task(self._answer(running, settings, place))
            self._wait_for_readers()

    async def _answer(self, running: Answer, settings: Settings, place: Place) -> None:
        progress = _Progress(asked_at=self._clock(), text=running.text)
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        try:
            async with place():
                await self._stream(running, settings, request_id, progress)
            if progress.finish is None:
                raise WorkerLost("the answer ended without saying that it was complete; retry", request_id=request_id)
            outcome = progress.finish.finish_reason or ""
            changes = {"state": "done", "finish_reason": progress.finish.finish_reason}
            if progress.finish.flagged:
                changes["notice"] = session.notice_of_flags(progress.finish.flagged)
        except asyncio.CancelledError:
            outcome, changes = "stopped", {"state": "stopped"}
        except LlavaError as error:
            outcome = error.code
            changes = {"state": "failed", "notice": session.notice_of(error)}
        except Exception:
            log.exception("request %s failed in the page", request_id)
            outcome = EngineFailure.__name__
            changes = {"state": "failed", "notice": _unforeseen(request_id)}
        self._set(session.update(self.chat, running.id, text=progress.text, figures=progress.figures, **changes))
        self._tell(request_id, running.model, outcome, progress)

    def _tell(self, request_id: str, model: str, outcome: str, progress: _Progress) -> None:
        """One line of log per answer, as controller and worker have one, with no word of the chat."""
        usage = progress.finish.usage if progress.finish else None
        fields = {
            "model": ascii(model[:100]),
            "outcome": outcome,
            "tokens": usage.completion_tokens if usage else "-",
            "first": "-" if progress.first_at is None else f"{progress.first_at - progress.asked_at:.3f}",
            "took": f"{self._clock() - progress.asked_at:.3f}",
        }
        told = " ".join(f"{name}={value}" for name, value in fields.items())
        log.info("chat %s %s", request_id, told, extra={"fields": {"request_id": request_id, **fields}})

    async def _stream(self, running: Answer, settings: Settings, request_id: str, progress: _Progress) -> None:
        images = await self._pictures.images(session.pictures_sent(self.chat))
        request = Request(
            running.model,
            session.messages(self.chat, images, settings.system),
            settings.sampling,
            continue_final=bool(running.text),
            owner=self._owner,
            id=request_id,
        )
        grown = False
        async with aclosing(self._chunks(request)) as chunks:
            async for chunk in chunks:
                progress.take(chunk, self._clock())
                self._set(session.update(self.chat, running.id, state="streaming", text=progress.text), grown=grown)
                grown = True

    async def _chunks(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer, as long as was wished or else as the context leaves room for."""
        begun = False
        try:
            async with aclosing(cast("_Closable", self._source.stream(request))) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
            return
        except ContextOverflow:
            if begun or request.sampling.max_tokens is None:
                raise
        shorter = replace(request, sampling=replace(request.sampling, max_tokens=None))
        async with aclosing(cast("_Closable", self._source.stream(shorter))) as chunks:
            async for chunk in chunks:
                yield chunk


class _Closable(AsyncIterator[Chunk]):
    async def aclose(self) -> None: ...


@dataclass
class _Progress:
    """What has come of an answer, and when."""

    asked_at: float
    text: str = ""
    first_at: float | None = None
    last_at: float | None = None
    finish: Chunk | None = None

    def take(self, chunk: Chunk, now: float) -> None:
        if chunk.text:
            self.text += chunk.text
            self.last_at = now
            if self.first_at is None:
                self.first_at = now
        if chunk.finish_reason:
            self.finish = chunk

    @property
    def figures(self) -> Figures | None:
        """None for an answer that did not reach its end: nobody counted its tokens."""
        usage: Usage | None = self.finish.usage if self.finish else None
        if usage is None or self.first_at is None or self.last_at is None:
            return None
        return Figures(self.first_at - self.asked_at, self.last_at - self.first_at, usage)


def _parameters(settings: Settings) -> dict[str, Any]:
    """What an answer is asked with, to be kept beside it."""
    sampling = settings.sampling
    chosen = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "system": settings.system,
    }
    return {name: value for name, value in chosen.items() if value not in (None, "")}


def chosen_in(chat: Chat) -> dict[str, Any]:
    """What the last answer of the chat was drawn with, as far as it is known; not its seed, which is for it alone."""
    kept = chat.turns[-1].answer.parameters if chat.turns else {}
    return {name: kept[name] for name in ("temperature", "top_p", "max_tokens") if name in kept}


def settings_of(chat: Chat, system: str) -> Settings:
    """What a chat that was kept, or came out of a file, is gone on with."""
    try:
        return Settings(system, Sampling(**chosen_in(chat)))
    except LlavaError:
        return Settings(system)


def _unforeseen(request_id: str) -> Notice:
    return Notice(
        "EngineFailure",
        f"something failed in the page that should not; the log has the details under {request_id}. Retry",
        retryable=True,
    )
