"""The list of an owner's chats: the latest first, searched by words, the columns of a comparison as one entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, distinct, exists, func, or_, select

from serve.store.messages import clean
from serve.store.records import Listed, ListedColumn
from serve.store.tables import CONVERSATIONS, GENERATIONS, MESSAGE_IMAGES, MESSAGES, SHARES


def listed(connection: Connection, owner: str, query: str = "", most: int = 300) -> tuple[Listed, ...]:
    """At most so many entries; with `query` those with a conversation that has all its words in title or messages."""
    entry = _entry().label("entry")
    asked = (
        select(entry)
        .where(CONVERSATIONS.c.owner == owner)
        .group_by(entry)
        .order_by(func.max(CONVERSATIONS.c.updated_at).desc(), entry)
        .limit(most)
    )
    words = clean(query).split()[:8]
    for word in words:
        said = exists().where(MESSAGES.c.conversation_id == CONVERSATIONS.c.id, _holds(MESSAGES.c.text, word))
        asked = asked.where(or_(_holds(CONVERSATIONS.c.title, word), said))
    entries: dict[str, list[Row[Any]]] = {found: [] for found in connection.scalars(asked)}
    rows = connection.execute(
        select(CONVERSATIONS, entry)
        .where(CONVERSATIONS.c.owner == owner, entry.in_(list(entries)))
        .order_by(CONVERSATIONS.c.slot, CONVERSATIONS.c.created_at, CONVERSATIONS.c.id)
    ).all()
    for row in rows:
        entries[row.entry].append(row)
    facts = _Facts(connection, [row.id for row in rows], words)
    return tuple(facts.entry(found, columns) for found, columns in entries.items() if columns)


def is_entry(entry: str, owner: str) -> ColumnElement[bool]:
    """Whether a conversation is this entry of the owner's list, or part of it."""
    return and_(_entry() == entry, CONVERSATIONS.c.owner == owner)


class _Facts:
    """What else the list tells of these conversations."""

    def __init__(self, connection: Connection, ids: Sequence[str], words: Sequence[str]) -> None:
        self._models: dict[str, list[str]] = {}
        models = (
            select(GENERATIONS.c.conversation_id, GENERATIONS.c.model)
            .where(GENERATIONS.c.conversation_id.in_(ids))
            .distinct()
            .order_by(GENERATIONS.c.model)
        )
        for conversation, model in connection.execute(models):
            self._models.setdefault(conversation, []).append(model)
        self._pictures = _by_first(
            connection,
            select(MESSAGE_IMAGES.c.conversation_id, func.count(distinct(MESSAGE_IMAGES.c.sha256)))
            .where(MESSAGE_IMAGES.c.conversation_id.in_(ids))
            .group_by(MESSAGE_IMAGES.c.conversation_id),
        )
        self._shared = _by_first(
            connection, select(SHARES.c.conversation_id, SHARES.c.token).where(SHARES.c.conversation_id.in_(ids))
        )
        self._found = _excerpts(connection, ids, words[0]) if words else {}

    def entry(self, id: str, columns: Sequence[Row[Any]]) -> Listed:
        """A comparison is called as the person named it, else by the first question of its first column."""
        compared = columns[0].comparison is not None
        return Listed(
            id,
            next((column.title for column in columns if column.named), columns[0].title),
            columns[0].place,
            max(column.updated_at for column in columns),
            _once(model for column in columns for model in self._models.get(column.id, ())),
            max(self._pictures.get(column.id, 0) for column in columns),
            None if compared else self._shared.get(id),
            next((self._found[column.id] for column in columns if column.id in self._found), ""),
            tuple(map(self._column, columns)) if compared else (),
        )

    def _column(self, column: Row[Any]) -> ListedColumn:
        return ListedColumn(column.id, tuple(self._models.get(column.id, ())), self._shared.get(column.id))


def _entry() -> ColumnElement[str]:
    """What a conversation is listed as: with the other columns of its comparison, or by itself."""
    return func.coalesce(CONVERSATIONS.c.comparison, CONVERSATIONS.c.id)


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _holds(column: Any, word: str) -> ColumnElement[bool]:
    return func.lower(column).contains(word.lower(), autoescape=True)


def _by_first(connection: Connection, statement: Any) -> dict[str, Any]:
    return {row[0]: row[-1] for row in connection.execute(statement)}


def _excerpts(connection: Connection, ids: Sequence[str], word: str) -> dict[str, str]:
    """The first message of each conversation that has the word, cut down to what stands around it."""
    found: dict[str, str] = {}
    asked = (
        select(MESSAGES.c.conversation_id, MESSAGES.c.text)
        .where(MESSAGES.c.conversation_id.in_(ids), _holds(MESSAGES.c.text, word))
        .order_by(MESSAGES.c.created_at, MESSAGES.c.position)
    )
    for row in connection.execute(asked):
        conversation, text = row[0], row[-1]
        if conversation not in found:
            at = max(0, text.lower().find(word.lower()))
            start = max(0, at - 40)
            piece = " ".join(text[start : at + 60].split())
            found[conversation] = ("…" if start else "") + piece
    return found
