"""Writes chats to the database as far as they changed: it remembers what of them, and which pictures, are there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection

from serve.store.conversations import save
from serve.store.database import Database
from serve.store.growing import grown_texts
from serve.store.images import keep_image, read_picture, stored_image
from serve.store.messages import write_texts
from serve.store.records import KeptChat, KeptMessage, KeptPicture

Noted = tuple[str, Callable[[], KeptChat]]
"""A chat's number, and what makes its latest state."""
_REMEMBERED = 500
"""Chats whose last written state is remembered, so that the next write is only of what changed."""
_MOST_HASHES = 20_000


class ChatWriter:
    """One thread writes; what is remembered may be asked and told from any."""

    def __init__(self, database: Database, *, originals: bool, now: Callable[[], datetime]) -> None:
        """With `originals` pictures are stored with what cameras wrote into them."""
        self._database, self._originals, self._now = database, originals, now
        self._lock = threading.Lock()
        self._written: OrderedDict[str, tuple[KeptMessage, ...]] = OrderedDict()
        self._hashes: OrderedDict[str, str] = OrderedDict()

    def remember(self, chat: str, messages: tuple[KeptMessage, ...]) -> None:
        """What was just read is what is written."""
        with self._lock:
            self._written[chat] = messages
            while len(self._written) > _REMEMBERED:
                self._written.popitem(last=False)

    def hash_of(self, file: str) -> str | None:
        """Under which hash the picture in this file is kept, if it is."""
        with self._lock:
            return self._hashes.get(file)

    def know(self, file: str, sha256: str) -> None:
        with self._lock:
            self._hashes[file] = sha256
            while len(self._hashes) > _MOST_HASHES:
                self._hashes.popitem(last=False)

    def forget(self, chat: str) -> None:
        """The next write of this chat is of all of it."""
        with self._lock:
            self._written.pop(chat, None)

    def forget_all(self) -> None:
        with self._lock:
            self._written.clear()

    def save(self, chat: KeptChat) -> None:
        with self._lock:
            before = self._written.get(chat.id)
        known = {message.key for message in before or ()}
        with self._database.writing() as connection:
            messages = tuple(
                message
                if not message.pictures
                else replace(
                    message,
                    pictures=tuple(
                        self._stored(connection, picture, message.key in known) for picture in message.pictures
                    ),
                )
                for message in chat.messages
            )
            chat = replace(chat, messages=messages)
            saved = save(connection, chat, before, self._now())
        if saved and chat.whole:
            self.remember(chat.id, chat.messages)

    def _stored(self, connection: Connection, picture: KeptPicture, known: bool) -> KeptPicture:
        """The picture with the hash it is stored under, and stored under it."""
        sha256 = picture.sha256 or self.hash_of(picture.file)
        if sha256 and (known or stored_image(connection, sha256)):
            return replace(picture, sha256=sha256, file="")
        found = read_picture(Path(picture.file), original=self._originals) if picture.file else None
        if found is None:
            return replace(picture, sha256=None, file="")
        sha256, image = found
        keep_image(connection, sha256, image, self._now())
        self.know(picture.file, sha256)
        return replace(picture, sha256=sha256, file="")

    def save_growing(self, chats: Sequence[Noted]) -> Sequence[Noted]:
        """Write those of which only texts have grown, all in one transaction; which those were."""
        growing: list[tuple[Noted, tuple[KeptMessage, ...]]] = []
        texts: list[tuple[str, str, str]] = []
        for chat, make in chats:
            with self._lock:
                before = self._written.get(chat)
            with suppress(Exception):  # which is met again, and told, when the chat is kept by itself
                if before and (grown := grown_texts(before, make().messages, self.hash_of)):
                    growing.append(((chat, make), grown[0]))
                    texts += [(chat, *text) for text in grown[1]]
        if not growing:
            return ()
        with self._database.writing() as connection:
            if not write_texts(connection, texts):  # one was deleted meanwhile
                return ()
        for (chat, _), messages in growing:
            self.remember(chat, messages)
        return [noted for noted, _ in growing]
