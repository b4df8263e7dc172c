"""People's own chats, found again after a restart: what the page asks of the store, and what it promises about it.

A browser makes up a secret for itself and shows it with every message; chats are kept under its hash. Who does not know
the secret finds none of them, and from the hash nobody gets back to the secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

from llava_core.config import StoreLimits
from llava_core.errors import LlavaError, Unauthorized
from serve.page.pictures import PictureDesk
from serve.page.session import Chat, Picture
from serve.page.tree import messages_of, title_of, turns_of
from serve.store import conversations, removing
from serve.store.images import StoredImage, fetch_image
from serve.store.keeper import Keeper, StoreTrouble
from serve.store.listing import listed
from serve.store.records import KeptChat, KeptPicture, Listed, Shared

log = logging.getLogger(__name__)
T = TypeVar("T")
_AFTER_THE_UNREAD = 1_000_000
"""Numbers of messages begin here where earlier ones could not be read, so that both can stand side by side later."""


class HistoryTrouble(LlavaError):
    """Kept chats cannot be read or changed at the moment."""

    retryable = True


@dataclass(frozen=True)
class Found:
    """A chat as it was kept. `whole` False: it could not be read, and what is asked now is added to it.

    A column of a comparison has its number, and its place there.
    """

    chat: Chat
    system: str = ""
    whole: bool = True
    comparison: str | None = None
    slot: int | None = None


class History:
    """`keeper` None keeps nothing: then every list is empty, and chats live as long as the page's server."""

    def __init__(
        self, keeper: Keeper | None, pictures: PictureDesk, limits: StoreLimits | None = None, keep_days: int = 0
    ) -> None:
        self._keeper = keeper
        self._pictures = pictures
        self._limits = limits or StoreLimits()
        self._keep_days = keep_days

    @property
    def is_on(self) -> bool:
        return self._keeper is not None

    @property
    def keeper(self) -> Keeper | None:
        """For what else is kept in the same database."""
        return self._keeper

    @property
    def end(self) -> str:
        """When what people write beside their chats, about a vote for one, is deleted."""
        if not self.is_on:
            return "when this server restarts"
        days = f", or after {self._keep_days} days" if self._keep_days else ""
        return f"when you delete all your chats{days}"

    @property
    def promise(self) -> str:
        """What the page says about it, in one sentence."""
        if not self.is_on:
            return "Chats are not kept: they live in this server's memory and are gone when it restarts."
        until = f"for {self._keep_days} days after their last question or until" if self._keep_days else "until"
        return (
            f"Chats and their pictures are kept on this server {until} you delete them; this browser holds the only "
            "key to the list, and whoever runs the server can read its database."
        )

    def report(self) -> dict[str, Any]:
        """How keeping goes, for the page to show."""
        if self._keeper is None:
            return {"on": False, "trouble": "", "unsaved": 0}
        state = self._keeper.state
        return {"on": True, "trouble": state.trouble, "unsaved": state.unsaved}

    @property
    def given_up(self) -> tuple[str, ...]:
        """The chats that are not kept as they are, though the others are."""
        return self._keeper.given_up if self._keeper else ()

    def note(self, id: str, owner: str, place: str, found: Found) -> None:
        """Keep this state of the chat. It costs nothing here: the keeper makes rows of it in its own thread."""
        if self._keeper:
            self._keeper.note(id, lambda: _kept(id, owner, place, found))

    async def load(self, id: str, owner: str) -> Found | None:
        """The chat as it was kept; None for one that is new. Raises Unauthorized for somebody else's."""
        if self._keeper is None:
            return None
        try:
            kept, foreign = await self._read(
                lambda connection: (
                    conversations.load(connection, id, owner),
                    conversations.is_anothers(connection, id, owner),
                )
            )
        except HistoryTrouble as trouble:
            log.warning("a chat is begun without what may have been kept of it: %s", trouble.message)
            return Found(Chat(serial=_AFTER_THE_UNREAD), whole=False)
        if foreign:
            raise Unauthorized("this chat belongs to another browser", param="room")
        if kept is None:
            return None
        self._keeper.written.remember(id, kept.messages)
        chat = Chat(turns_of(kept.messages, self._picture), kept.serial)
        await self.bring_back(pictures_of(chat))
        return Found(chat, kept.system, comparison=kept.comparison, slot=kept.slot)

    async def bring_back(self, pictures: tuple[Picture, ...]) -> None:
        """Pictures whose files have gone, the upload folder is emptied now and then, are put back from the store."""
        if self._keeper is None:
            return
        hashes = {picture.path: sha for picture in pictures if (sha := self._keeper.written.hash_of(picture.path))}
        for path in await asyncio.to_thread(_gone, tuple(hashes)):
            try:
                image = await self.image(hashes[path])
            except HistoryTrouble:
                return
            if image:
                await asyncio.to_thread(self._pictures.put_back, path, image.data)

    async def image(self, sha256: str) -> StoredImage | None:
        return await self._read(lambda connection: fetch_image(connection, sha256))

    async def chats(self, owner: str, query: str = "", looks: int = 1) -> tuple[tuple[Listed, ...], bool]:
        """The latest, as many as go into so many looks, and whether there are older ones."""
        if self._keeper is None:
            return (), False
        await self._do(lambda _: None)  # what was said up to now is written first
        looks = min(max(1, looks), self._limits.most_looks)
        most = self._limits.max_listed * looks
        found = await self._read(lambda connection: listed(connection, owner, query[:200], most + 1))
        return found[:most], len(found) > most and looks < self._limits.most_looks

    async def rename(self, id: str, owner: str, title: str) -> bool:
        return await self._do(lambda connection: conversations.rename(connection, id, owner, title))

    async def part(self, id: str, owner: str) -> None:
        """The chat is a column of no comparison any more."""
        await self._do(lambda connection: conversations.part(connection, id, owner))

    async def delete(self, id: str, owner: str) -> tuple[str, ...]:
        """A chat, or a comparison with all its columns. Which chats those were."""
        gone = await self._do(lambda connection: conversations.remove(connection, id, owner))
        for chat in gone:
            self._on().forget(chat)
        return gone

    async def delete_all(self, owner: str) -> tuple[str, ...]:
        """Chats, and what stands with the owner's votes. Which chats those were."""
        if self._keeper is None:
            return ()
        return await self._do(lambda connection: removing.remove_all(connection, owner))

    async def share(self, id: str, owner: str) -> str | None:
        return await self._do(lambda connection: conversations.share(connection, id, owner, datetime.now(UTC)))

    async def withdraw(self, id: str, owner: str) -> bool:
        return await self._do(lambda connection: conversations.withdraw(connection, id, owner))

    async def shared(self, token: str) -> Shared | None:
        if self._keeper is None:
            return None
        return await self._read(lambda connection: conversations.shared(connection, token))

    def close(self) -> None:
        """Write what is not written yet."""
        if self._keeper:
            self._keeper.close()

    async def _read(self, job: Callable[[Connection], T]) -> T:
        keeper = self._on()
        try:
            async with asyncio.timeout(self._limits.read_s):
                return await asyncio.to_thread(keeper.read, job)
        except (StoreTrouble, TimeoutError) as error:
            raise _trouble(error) from None

    async def _do(self, job: Callable[[Connection], T]) -> T:
        try:
            async with asyncio.timeout(self._limits.read_s):
                return await asyncio.wrap_future(self._on().do(job))
        except (StoreTrouble, TimeoutError) as error:
            raise _trouble(error) from None

    def _on(self) -> Keeper:
        if self._keeper is None:
            raise HistoryTrouble("this server keeps no chats")
        return self._keeper

    def _picture(self, kept: KeptPicture) -> Picture:
        example = self._pictures.example(kept.example) if kept.example else None
        if example:
            return example
        if kept.sha256 is None or self._keeper is None:
            return Picture(kept.name, "", "", kept.mime, kept.size)
        picture = self._pictures.placed(kept.sha256, kept.name, kept.mime, kept.size)
        self._keeper.written.know(picture.path, kept.sha256)
        return picture


def owner_of(secret: str) -> str:
    return hashlib.sha256(f"owner {secret}".encode()).hexdigest()


def pictures_of(chat: Chat) -> tuple[Picture, ...]:
    """Those of the turns that are shown."""
    return tuple(picture for turn in chat.turns for picture in turn.pictures)


def _gone(paths: tuple[str, ...]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]


def _kept(id: str, owner: str, place: str, found: Found) -> KeptChat:
    chat = found.chat
    return KeptChat(
        id,
        owner,
        title_of(chat.turns),
        place,
        found.system,
        chat.serial,
        messages_of(chat.turns),
        found.whole,
        found.comparison,
        found.slot,
    )


def _trouble(error: Exception) -> HistoryTrouble:
    reason = str(error) if isinstance(error, StoreTrouble) else "this server's database takes too long"
    return HistoryTrouble(f"{reason}; try again in a moment")
