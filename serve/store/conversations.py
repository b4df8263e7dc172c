"""Conversations in the store: written as far as they changed, read back whole, renamed, deleted, shared.

Every function works in the transaction it is given. Nothing is found, changed or deleted for another owner.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select, update

from serve.store.database import upsert
from serve.store.images import sweep_images
from serve.store.listing import is_entry
from serve.store.messages import clean, read_messages, remove_messages, shown_path, write_messages
from serve.store.records import KeptChat, KeptMessage, Shared
from serve.store.tables import CONVERSATIONS, MESSAGE_IMAGES, MESSAGES, SHARES


def save(connection: Connection, chat: KeptChat, before: Sequence[KeptMessage] | None, now: datetime) -> bool:
    """Write what differs from `before`, the messages as they were last written; None if that is not known.

    False if the conversation is another owner's, and then nothing is written.
    """
    known = connection.execute(select(CONVERSATIONS).where(CONVERSATIONS.c.id == chat.id)).one_or_none()
    if known and known.owner != chat.owner:
        return False
    row = {
        "id": chat.id,
        "owner": chat.owner,
        "title": known.title if known and (known.named or not chat.whole) else clean(chat.title)[:200],
        "named": bool(known and known.named),
        "place": chat.place,
        "system": clean(chat.system),
        "serial": chat.serial,
        "comparison": chat.comparison,
        "slot": chat.slot,
        "created_at": known.created_at if known else now,
        "updated_at": now,
    }
    old = {message.key: message for message in before or ()} if known else {}
    changed = [message for message in chat.messages if old.get(message.key) != message]
    if known and not any(_says_more(message, old.get(message.key)) for message in changed):
        row["updated_at"] = known.updated_at  # a look at another branch, a rating: no reason to come first in the list
    upsert(connection, CONVERSATIONS, [row])
    write_messages(connection, chat.id, changed, now)
    if chat.whole and before is None:
        there = connection.scalars(select(MESSAGES.c.key).where(MESSAGES.c.conversation_id == chat.id))
        remove_messages(connection, chat.id, set(there) - {message.key for message in chat.messages})
    elif chat.whole:
        remove_messages(connection, chat.id, old.keys() - {message.key for message in chat.messages})
    return True


def load(connection: Connection, conversation: str, owner: str) -> KeptChat | None:
    row = connection.execute(
        select(CONVERSATIONS).where(CONVERSATIONS.c.id == conversation, CONVERSATIONS.c.owner == owner)
    ).one_or_none()
    if row is None:
        return None
    return KeptChat(
        row.id,
        row.owner,
        row.title,
        row.place,
        row.system,
        row.serial,
        read_messages(connection, conversation),
        comparison=row.comparison,
        slot=row.slot,
    )


def is_anothers(connection: Connection, conversation: str, owner: str) -> bool:
    found = connection.scalar(select(CONVERSATIONS.c.owner).where(CONVERSATIONS.c.id == conversation))
    return found is not None and found != owner


def rename(connection: Connection, entry: str, owner: str, title: str) -> bool:
    """A conversation, or all columns of a comparison. False where the owner has no such entry in the list."""
    statement = update(CONVERSATIONS).where(is_entry(entry, owner))
    return connection.execute(statement.values(title=clean(title)[:200], named=True)).rowcount > 0


def part(connection: Connection, conversation: str, owner: str) -> None:
    """The conversation is a column of no comparison any more, but a chat of its own."""
    connection.execute(update(CONVERSATIONS).where(*_its(conversation, owner)).values(comparison=None, slot=None))


def remove(connection: Connection, entry: str, owner: str) -> tuple[str, ...]:
    """A conversation, or all columns of a comparison, and the pictures that nobody else has; ratings and shares go
    along. The ids of what there was."""
    return _remove_all_where(connection, is_entry(entry, owner))


def remove_all(connection: Connection, owner: str) -> tuple[str, ...]:
    """Everything of the owner; the ids of what there was."""
    return _remove_all_where(connection, CONVERSATIONS.c.owner == owner)


def remove_older(connection: Connection, than: datetime) -> int:
    """How many; the columns of a comparison stay until the last of them is that old."""
    young = select(CONVERSATIONS.c.comparison).where(
        CONVERSATIONS.c.updated_at >= than, CONVERSATIONS.c.comparison.is_not(None)
    )
    alone = or_(CONVERSATIONS.c.comparison.is_(None), CONVERSATIONS.c.comparison.not_in(young))
    return _remove_where(connection, and_(CONVERSATIONS.c.updated_at < than, alone))


def share(connection: Connection, conversation: str, owner: str, now: datetime) -> str | None:
    """The token of a link to the conversation as it is shown now; an earlier link of it no longer works."""
    chat = load(connection, conversation, owner)
    path = shown_path(chat.messages) if chat else ()
    if chat is None or not path:
        return None
    last = path[-1]
    if not last.text and len(path) > 1:  # an answer that is still waited for, or failed: another takes its place later
        last = path[-2]
    withdraw(connection, conversation, owner)
    token = secrets.token_urlsafe(24)
    row = {
        "token": token,
        "conversation_id": conversation,
        "last_key": last.key,
        "last_length": len(last.text),
        "title": chat.title,
        "created_at": now,
    }
    upsert(connection, SHARES, [row])
    return token


def withdraw(connection: Connection, conversation: str, owner: str) -> bool:
    its = select(CONVERSATIONS.c.id).where(*_its(conversation, owner))
    return connection.execute(delete(SHARES).where(SHARES.c.conversation_id.in_(its))).rowcount > 0


def shared(connection: Connection, token: str) -> Shared | None:
    """What the link shows: the messages from the first to what was the last when it was made, as it was then."""
    row = connection.execute(
        select(SHARES, CONVERSATIONS.c.title.label("called"))
        .join(CONVERSATIONS, CONVERSATIONS.c.id == SHARES.c.conversation_id)
        .where(SHARES.c.token == token)
    ).one_or_none()
    if row is None:
        return None
    by_key = {message.key: message for message in read_messages(connection, row.conversation_id)}
    path: list[KeptMessage] = []
    at: str | None = row.last_key
    while at is not None and at in by_key:
        path.append(by_key[at])
        at = by_key[at].parent
    if not path:
        return None
    path[0] = replace(path[0], text=path[0].text[: row.last_length])
    return Shared(row.title or row.called, row.created_at, tuple(reversed(path)))


def _says_more(message: KeptMessage, before: KeptMessage | None) -> bool:
    return before is None or (message.text, message.generation) != (before.text, before.generation)


def _its(conversation: str, owner: str) -> tuple[ColumnElement[bool], ...]:
    return CONVERSATIONS.c.id == conversation, CONVERSATIONS.c.owner == owner


def _remove_all_where(connection: Connection, which: ColumnElement[bool]) -> tuple[str, ...]:
    ids = tuple(connection.scalars(select(CONVERSATIONS.c.id).where(which)))
    _remove_where(connection, which)
    return ids


def _remove_where(connection: Connection, which: ColumnElement[bool]) -> int:
    ids = select(CONVERSATIONS.c.id).where(which)
    pictures = connection.scalars(
        select(MESSAGE_IMAGES.c.sha256)
        .where(MESSAGE_IMAGES.c.conversation_id.in_(ids), MESSAGE_IMAGES.c.sha256.is_not(None))
        .distinct()
    ).all()
    gone = connection.execute(delete(CONVERSATIONS).where(which)).rowcount
    for start in range(0, len(pictures), 500):
        sweep_images(connection, [sha for sha in pictures[start : start + 500] if sha])
    return gone
