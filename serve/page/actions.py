"""What a person does on the page, from the browser's message to the room it concerns.

Every message is a mapping with `do`, the name of the action, `room`, a secret the browser made up for the chat: who
knows it is in the room, nobody else is; and `owner`, a secret it made up for itself, under which its chats are kept.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from secrets import token_urlsafe
from typing import Any, cast

from llava_core.config import CompareLimits
from llava_core.errors import BadRequest, LlavaError, Unauthorized
from serve.page import comparison, export, session
from serve.page.bring_in import read_chat
from serve.page.feedback import Feedback
from serve.page.history import Found, History, HistoryTrouble, owner_of, pictures_of
from serve.page.messages import LONGEST_QUESTION, SECRET, Message, read_claims, read_number, read_owner, read_settings
from serve.page.pictures import PictureDesk
from serve.page.room import Place, Room, RoomTimings, Settings, chosen_in, settings_of
from serve.page.session import Chat, Rating
from serve.page.source import AnswerSource
from serve.page.tree import title_of
from serve.page.view import Drawer

_LONG_TO_DRAW = 50_000
"""Characters of answers whose Markdown is rendered in a thread, one chat at a time, so that everybody else goes on."""
_NEED_PICTURES = ("open", "ask", "edit", "retry", "resume")
_ASKING = ("ask", "edit", "retry", "resume", "join")


@dataclass
class _Held:
    """A room, who it belongs to, and what was drawn of it."""

    room: Room
    owner: str
    comparison: str | None = None
    """Which it is a column of, and which column."""
    slot: int | None = None
    drawer: Drawer = field(default_factory=Drawer)


class Rooms:
    """Every conversation of every open page, at most `most`; the longest unused is forgotten first, and read from the
    history when somebody comes back to it."""

    def __init__(
        self,
        source: AnswerSource,
        pictures: PictureDesk,
        feedback: Feedback,
        timings: RoomTimings | None = None,
        most: int = 2000,
        clock: Callable[[], float] = time.monotonic,
        history: History | None = None,
    ) -> None:
        self.history = history or History(None, pictures)
        self._source = source
        self._pictures = pictures
        self._feedback = feedback
        self._timings = timings
        self._most = most
        self._clock = clock
        self._rooms: OrderedDict[str, _Held] = OrderedDict()
        self._arriving: dict[str, asyncio.Task[Found | None]] = {}
        self._drawing = asyncio.Lock()

    async def tell(self, message: Message, place: Place = nullcontext) -> dict[str, Any]:
        """Do what the message says and show the room as it is then. `place` is taken for an answer that begins."""
        held = await self._held(message)
        if message.get("do") in _ASKING:
            _stand(held, message)
        if message.get("do") == "part":
            await self._part(held, message)
        else:
            await self._do(held.room, message, place)
        return await self._view(message, held, held.room.chat)

    async def follow(self, message: Message, reader: str) -> AsyncIterator[dict[str, Any]]:
        """The room that the message names while an answer is on its way, until it is there: whole at first and when
        more than the answer's text has changed, else its blocks from the first that is another one."""
        held = await self._held({**message, "do": ""})
        room, form, shown = held.room, -1, ()
        async for chat in room.follow(reader):
            running = chat.running
            blocks = held.drawer.blocks(running) if running else ()
            if running is None or form != room.form:
                form = room.form
                yield await self._view(message, held, chat)
            else:
                same = 0
                for before, now in zip(shown, blocks, strict=False):
                    if before != now:
                        break
                    same += 1
                grown = {"from": same, "blocks": blocks[same:]}
                yield {"room": message["room"], "born": room.born, "revision": room.revision, **grown}
            shown = blocks

    async def look(self, message: Message) -> Chat:
        """The chat of the room that the message names."""
        return (await self._held(message)).room.chat

    async def export(self, message: Message) -> str:
        """The chat as a file's text, in the `kind` the message asks for, `json` or `markdown`; where it names `rooms`,
        a comparison of the chats in them."""
        listed = message.get("rooms")
        names = cast("list[Any]", listed)[: CompareLimits().columns] if isinstance(listed, list) else []
        as_json = message.get("kind") == "json"
        rooms = [(await self._held({**message, "room": name})).room for name in names or [message.get("room")]]
        chats = [room.chat for room in rooms]
        find = (lambda chat: tuple(session.all_pictures(chat.turns))) if as_json else pictures_of
        pictures = tuple(picture for chat in chats for picture in find(chat))
        await self.history.bring_back(pictures)
        urls, now = await self._pictures.data_urls(pictures), datetime.now().astimezone()
        systems = [room.settings.system for room in rooms]
        if names:
            write = comparison.to_json if as_json else comparison.to_markdown
            return write(tuple(zip(chats, systems, strict=True)), urls, now)
        write = export.to_json if as_json else export.to_markdown
        return write(chats[0], urls, systems[0], now)

    async def bring_in(self, secret: str, owner: str, name: str, text: str) -> list[str]:
        """A chat out of a file as a room of the owner, or a comparison, of which the columns' rooms are told. Raises
        BadRequest or BadImage for a file that is neither."""
        if not SECRET.fullmatch(secret) or secret in self._rooms:
            raise BadRequest("this page lost track of its chat; reload it", param="id")
        found = await asyncio.to_thread(read_chat, name, text, self._pictures.take_in)
        if not found.beside:
            self._place(secret, self._made(secret, owner, "chat", Found(found.chat, found.system)))
            return []
        rooms: list[str] = []
        for slot, column in enumerate((found, *found.beside)):
            rooms.append(token_urlsafe(24))
            chat = Found(column.chat, column.system, comparison=secret, slot=slot)
            self._place(rooms[-1], self._made(rooms[-1], owner, "compare", chat))
        return rooms

    def _place(self, secret: str, held: _Held) -> None:
        self._rooms[secret] = held
        held.room.mark(lambda chat: chat)

    def unkept(self, owner: str) -> list[str]:
        """What those of the owner's chats are called that could not be kept."""
        held = [self._rooms[secret] for secret in self.history.given_up if secret in self._rooms]
        return [title_of(one.room.chat.turns) for one in held if one.owner == owner]

    async def forget_ratings(self, secrets: Iterable[str], owner: str = "") -> None:
        """What the operator recorded of these chats, and of all that this owner rated."""
        await self._feedback.forget(secrets, owner)

    async def drop(self, owner: str, secrets: Iterable[str] | None = None) -> None:
        """Forget these rooms of the owner, columns of these comparisons, or all, and end what is on its way there."""
        wanted = set(self._rooms if secrets is None else secrets)
        for secret, held in list(self._rooms.items()):
            if (secret in wanted or held.comparison in wanted) and held.owner == owner:
                held.room.keep_nothing()
                await held.room.aclose()
                self._rooms.pop(secret, None)

    def is_answering(self, secret: str) -> bool:
        return secret in self._rooms and self._rooms[secret].room.is_answering

    def leave(self, reader: str) -> None:
        """This reader is gone, from whichever rooms it looked at."""
        for held in self._rooms.values():
            held.room.leave(reader)

    async def aclose(self) -> None:
        for held in list(self._rooms.values()):
            await held.room.aclose()

    async def _held(self, message: Message) -> _Held:
        secret = str(message.get("room", ""))
        if not SECRET.fullmatch(secret):
            raise BadRequest("this page lost track of its chat; reload it", param="room")
        owner = read_owner(message) or owner_of(secret)
        if secret not in self._rooms:
            found = await self._found(secret, owner)
            if secret not in self._rooms:
                self._rooms[secret] = self._made(secret, owner, str(message.get("place") or "")[:40], found)
                self._forget_the_longest_unused(secret)
        self._rooms.move_to_end(secret)
        held = self._rooms[secret]
        if held.owner != owner:
            raise Unauthorized("this chat belongs to another browser", param="room")
        if message.get("do") in _NEED_PICTURES:
            await self.history.bring_back(pictures_of(held.room.chat))
        return held

    async def _found(self, secret: str, owner: str) -> Found | None:
        """What the history has of this chat; it is read once however many ask for it."""
        if secret not in self._arriving:
            task = asyncio.create_task(self.history.load(secret, owner))
            self._arriving[secret] = task
            task.add_done_callback(lambda _: self._arriving.pop(secret, None))
        return await asyncio.shield(self._arriving[secret])

    def _made(self, secret: str, owner: str, place: str, found: Found | None) -> _Held:
        found = found or Found(Chat())

        def keep(chat: Chat, settings: Settings) -> None:
            state = Found(chat, settings.system, found.whole, held.comparison, held.slot)
            self.history.note(secret, owner, place, state)

        room = Room(self._source, self._pictures, owner[:16], self._timings, self._clock, found.chat, keep)
        room.settings = settings_of(found.chat, found.system)
        held = _Held(room, owner, found.comparison, found.slot)
        return held

    async def _view(self, message: Message, held: _Held, chat: Chat) -> dict[str, Any]:
        """`born` tells the browser when a room is not the one it knew: after a restart, or when it was forgotten."""
        room = held.room
        revision, drawer = room.revision, held.drawer
        if drawer.unrendered(chat) > _LONG_TO_DRAW:
            # A chat that was brought in may be of any length.
            async with self._drawing:
                shown = await asyncio.to_thread(drawer.view, chat, revision)
        else:
            shown = drawer.view(chat, revision)
        settings = {**chosen_in(chat), "system": room.settings.system}
        return {"room": message["room"], "born": room.born, **shown, "settings": settings}

    def _forget_the_longest_unused(self, keep: str) -> None:
        """Those in which nothing was said go first: they cost whoever makes them up nothing, and nobody misses them."""
        if len(self._rooms) <= self._most:
            return
        unused = [secret for secret, held in self._rooms.items() if not held.room.is_answering and secret != keep]
        unused.sort(key=lambda secret: bool(self._rooms[secret].room.chat.turns))
        for secret in unused[: len(self._rooms) - self._most]:
            del self._rooms[secret]

    async def _do(self, room: Room, message: Message, place: Place) -> None:
        match message.get("do"):
            case "open":
                return
            case "ask" | "edit":
                await self._question(room, message, place)
            case "retry":
                await self._retry(room, message, place)
            case "resume":
                await room.resume(room.settings, place)
            case "join":
                origin = await self._origin(message)
                model = str(message.get("model") or "")
                await room.become(session.join(origin.chat, model), read_settings(message), place)
            case "copy":
                origin = await self._origin(message)
                await room.become(session.settled(origin.chat), origin.settings)
            case "stop":
                await room.stop()
            case "undo":
                await room.change(session.undo)
            case "restore":
                await room.change(session.restore)
            case "show":
                turn, shown = str(message.get("turn")), read_number(message.get("shown"), 0)
                room.mark(lambda chat: session.show(chat, turn, shown))
            case "show wording":
                turn, wording = str(message.get("turn")), read_number(message.get("shown"), 0)
                room.mark(lambda chat: session.show_wording(chat, turn, wording))
            case "rate":
                await self._rate(room, message)
            case other:
                raise BadRequest(f"the page does not know how to {other!r}; reload it")

    async def _part(self, held: _Held, message: Message) -> None:
        """The column was closed: it goes on as a chat of its own."""
        held.comparison = held.slot = None
        try:
            await self.history.part(str(message["room"]), held.owner)
        except HistoryTrouble:
            held.room.mark(lambda chat: chat)  # what is kept of it says so when it can be written

    async def _question(self, room: Room, message: Message, place: Place) -> None:
        text, model = str(message.get("text") or "").strip(), str(message.get("model") or "")
        try:
            if len(text) > LONGEST_QUESTION:
                raise BadRequest(f"the question has {len(text)} characters, more than {LONGEST_QUESTION}; shorten it")
            pictures = await self._pictures.accept(read_claims(message))
            if not text and not pictures:
                raise BadRequest("there is nothing to send; write a question or attach a picture")
            settings = read_settings(message)
        except LlavaError as error:
            await room.stop()
            room.refuse(error, text[:LONGEST_QUESTION], (), model)
            return
        if message.get("do") == "edit":
            await room.edit(str(message.get("turn")), text, pictures, model, settings, place)
        else:
            await room.ask(text, pictures, model, settings, place)

    async def _origin(self, message: Message) -> Room:
        """The room `from` which a chat is taken over: only the owner's."""
        if message.get("from") == message.get("room"):
            raise BadRequest("a chat cannot be taken over from itself", param="from")
        return (await self._held({**message, "room": message.get("from"), "do": "open"})).room

    async def _retry(self, room: Room, message: Message, place: Place) -> None:
        try:
            settings = read_settings(message)
        except LlavaError:
            settings = room.settings
        await room.retry(str(message.get("model") or ""), settings, str(message.get("turn") or ""), place)

    async def _rate(self, room: Room, message: Message) -> None:
        answer = str(message.get("answer"))
        rating = message.get("rating")
        changes: dict[str, Any] = {"flagged": bool(message.get("flagged"))}
        if rating in ("", "like", "dislike"):
            changes["rating"] = cast(Rating, rating)
        room.mark(partial(_updated, answer=answer, changes=changes))
        found = session.find(room.chat, answer)
        if found:
            secret = str(message["room"])
            await self._feedback.keep(secret, read_owner(message) or owner_of(secret), room.chat, *found)


def _stand(held: _Held, message: Message) -> None:
    """A chat is a column of the comparison that it was asked in last."""
    comparison, slot = str(message.get("comparison") or ""), message.get("slot")
    if SECRET.fullmatch(comparison) and isinstance(slot, int) and 0 <= slot < CompareLimits().columns:
        held.comparison, held.slot = comparison, slot


def _updated(chat: Chat, answer: str, changes: dict[str, Any]) -> Chat:
    return session.update(chat, answer, **changes)
