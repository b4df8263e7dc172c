"""What a person does on the page, from the browser's message to the room it concerns.

Every message is a mapping with `do`, the name of the action, and `room`, a secret the browser made up for itself:
who knows it is in the room, nobody else is.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, cast

from llava_core.errors import BadImage, BadRequest, LlavaError
from llava_core.types import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, DEFAULT_TOP_P, Sampling
from serve.page import export, session
from serve.page.feedback import Feedback
from serve.page.pictures import PictureDesk
from serve.page.room import Room, RoomTimings, Settings
from serve.page.session import Chat, Rating
from serve.page.source import AnswerSource
from serve.page.view import Drawer

_SECRET = re.compile(r"[A-Za-z0-9_-]{20,80}")
_LONGEST_QUESTION = 200_000

Message = Mapping[str, Any]


class Rooms:
    """Every conversation of every open page, at most `most`; the longest unused is forgotten first."""

    def __init__(
        self,
        source: AnswerSource,
        pictures: PictureDesk,
        feedback: Feedback,
        timings: RoomTimings | None = None,
        most: int = 2000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._pictures = pictures
        self._feedback = feedback
        self._timings = timings
        self._most = most
        self._clock = clock
        self._rooms: OrderedDict[str, tuple[Room, Drawer]] = OrderedDict()

    async def act(self, message: Message, reader: str) -> AsyncIterator[dict[str, Any]]:
        """Do what the message says and show the room while an answer is on its way, until it is there."""
        room, drawer = self._room(message)
        await self._do(room, message)
        async for chat in room.follow(reader):
            yield _view(message, room, drawer, chat)

    async def tell(self, message: Message) -> dict[str, Any]:
        """Do what the message says and show the room once."""
        room, drawer = self._room(message)
        await self._do(room, message)
        return _view(message, room, drawer, room.chat)

    async def export(self, message: Message) -> str:
        """The chat as a file's text, in the `kind` the message asks for: `json` or `markdown`."""
        room, _ = self._room(message)
        pictures = tuple(picture for turn in room.chat.turns for picture in turn.pictures)
        urls = await self._pictures.data_urls(pictures)
        write = export.to_json if message.get("kind") == "json" else export.to_markdown
        return write(room.chat, urls, room.settings.system, datetime.now().astimezone())

    def leave(self, reader: str) -> None:
        """The page of this reader is gone, from whichever rooms it looked at."""
        for room, _ in self._rooms.values():
            room.leave(reader)

    async def aclose(self) -> None:
        for room, _ in list(self._rooms.values()):
            await room.aclose()

    def _room(self, message: Message) -> tuple[Room, Drawer]:
        secret = str(message.get("room", ""))
        if not _SECRET.fullmatch(secret):
            raise BadRequest("this page lost track of its chat; reload it", param="room")
        if secret not in self._rooms:
            owner = hashlib.sha256(secret.encode()).hexdigest()[:16]
            self._rooms[secret] = (Room(self._source, self._pictures, owner, self._timings, self._clock), Drawer())
            self._forget_the_longest_unused(secret)
        self._rooms.move_to_end(secret)
        return self._rooms[secret]

    def _forget_the_longest_unused(self, keep: str) -> None:
        for secret, (room, _) in list(self._rooms.items()):
            if len(self._rooms) <= self._most:
                return
            if not room.is_answering and secret != keep:
                del self._rooms[secret]

    async def _do(self, room: Room, message: Message) -> None:
        match message.get("do"):
            case "open":
                return
            case "ask" | "edit":
                await self._question(room, message)
            case "retry":
                await self._retry(room, message)
            case "resume":
                await room.resume(room.settings)
            case "stop":
                await room.stop()
            case "undo":
                await room.change(session.undo)
            case "clear":
                await room.change(session.clear)
            case "restore":
                await room.change(session.restore)
            case "show":
                turn, shown = str(message.get("turn")), _whole(message.get("shown"), 0)
                room.mark(lambda chat: session.show(chat, turn, shown))
            case "rate":
                await self._rate(room, message)
            case other:
                raise BadRequest(f"the page does not know how to {other!r}; reload it")

    async def _question(self, room: Room, message: Message) -> None:
        text, model = str(message.get("text") or "").strip(), str(message.get("model") or "")
        try:
            if len(text) > _LONGEST_QUESTION:
                raise BadRequest(f"the question has {len(text)} characters, more than {_LONGEST_QUESTION}; shorten it")
            pictures = await self._pictures.accept(_claims(message))
            if not text and not pictures:
                raise BadRequest("there is nothing to send; write a question or attach a picture")
            settings = _settings(message)
        except LlavaError as error:
            await room.stop()
            room.refuse(error, text[:_LONGEST_QUESTION], (), model)
            return
        if message.get("do") == "edit":
            await room.edit(str(message.get("turn")), text, pictures, model, settings)
        else:
            await room.ask(text, pictures, model, settings)

    async def _retry(self, room: Room, message: Message) -> None:
        try:
            settings = _settings(message)
        except LlavaError:
            settings = room.settings
        await room.retry(str(message.get("model") or ""), settings)

    async def _rate(self, room: Room, message: Message) -> None:
        answer = str(message.get("answer"))
        rating = message.get("rating")
        changes: dict[str, Any] = {"flagged": bool(message.get("flagged"))}
        if rating in ("", "like", "dislike"):
            changes["rating"] = cast(Rating, rating)
        room.mark(partial(_updated, answer=answer, changes=changes))
        found = session.find(room.chat, answer)
        if found:
            await self._feedback.keep(room.chat, *found)


def _view(message: Message, room: Room, drawer: Drawer, chat: Chat) -> dict[str, Any]:
    """`born` tells the browser when a room is not the one it knew: after a restart, or when it was forgotten."""
    return {"room": message["room"], "born": room.born, **drawer.view(chat, room.revision)}


def _updated(chat: Chat, answer: str, changes: dict[str, Any]) -> Chat:
    return session.update(chat, answer, **changes)


def _claims(message: Message) -> list[Message]:
    listed = message.get("pictures") or []
    if not isinstance(listed, list) or not all(isinstance(claim, Mapping) for claim in listed):
        raise BadImage("the pictures did not arrive as they should; attach them again")
    return cast("list[Message]", listed)


def _settings(message: Message) -> Settings:
    """The person's settings. Raises BadRequest for a number out of range."""
    given = message.get("settings")
    chosen: Message = cast("Message", given) if isinstance(given, Mapping) else {}
    seed = chosen.get("seed")
    try:
        sampling = Sampling(
            max_tokens=int(chosen.get("max_tokens", DEFAULT_MAX_TOKENS)),
            temperature=float(chosen.get("temperature", DEFAULT_TEMPERATURE)),
            top_p=float(chosen.get("top_p", DEFAULT_TOP_P)),
            seed=None if seed in (None, "") else int(cast(str, seed)),
        )
    except (TypeError, ValueError, OverflowError):
        raise BadRequest("one of the settings is not a number; open them and set it again") from None
    return replace(Settings(), system=str(chosen.get("system") or "")[:_LONGEST_QUESTION], sampling=sampling)


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise
