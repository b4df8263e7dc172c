"""The messages of a conversation as rows: written as far as they are new or changed, read back parents first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, select, update

from serve.store.database import upsert
from serve.store.records import Generation, KeptMessage, KeptPicture
from serve.store.tables import FEEDBACK, GENERATIONS, MESSAGE_IMAGES, MESSAGES

_NEW_TEXT = (
    update(MESSAGES)
    .where(MESSAGES.c.conversation_id == bindparam("of"), MESSAGES.c.key == bindparam("named"))
    .values(text=bindparam("said"))
)
_GENERATION_FIELDS = tuple(Generation.__dataclass_fields__)


def write_messages(connection: Connection, conversation: str, messages: Sequence[KeptMessage], now: datetime) -> None:
    of = {"conversation_id": conversation}
    there = set(
        connection.scalars(
            select(MESSAGES.c.key).where(
                MESSAGES.c.conversation_id == conversation, MESSAGES.c.key.in_([message.key for message in messages])
            )
        )
    )
    fresh = [message for message in messages if message.key not in there]
    rows = [
        {
            **of,
            "key": message.key,
            "parent": message.parent,
            "role": message.role,
            "position": message.position,
            "shown": message.shown,
            "text": clean(message.text),
            "created_at": now,
        }
        for message in messages
    ]
    upsert(connection, MESSAGES, [row for row in rows if row["key"] not in there])
    for row in rows:
        if row["key"] in there:
            changes = {name: row[name] for name in ("parent", "position", "shown", "text")}
            connection.execute(
                update(MESSAGES)
                .where(MESSAGES.c.conversation_id == conversation, MESSAGES.c.key == row["key"])
                .values(changes)
            )
    upsert(
        connection,
        MESSAGE_IMAGES,
        [
            {
                **of,
                "message_key": message.key,
                "position": place,
                "sha256": picture.sha256,
                "name": clean(picture.name)[:200],
                "mime": picture.mime[:40],
                "size": picture.size,
                "example": picture.example[:200],
            }
            for message in fresh
            for place, picture in enumerate(message.pictures)
        ],
    )
    answers = [(message, message.generation) for message in messages if message.generation]
    upsert(
        connection,
        GENERATIONS,
        [{**of, "message_key": message.key, **_generation_row(generation)} for message, generation in answers],
    )
    upsert(
        connection,
        FEEDBACK,
        [
            {**of, "message_key": message.key, "rating": message.rating, "flagged": message.flagged, "updated_at": now}
            for message, _ in answers
            if message.rating or message.flagged
        ],
    )
    withdrawn = [message.key for message, _ in answers if not (message.rating or message.flagged)]
    if withdrawn:
        connection.execute(
            delete(FEEDBACK).where(FEEDBACK.c.conversation_id == conversation, FEEDBACK.c.message_key.in_(withdrawn))
        )


def write_texts(connection: Connection, texts: Sequence[tuple[str, str, str]]) -> bool:
    """New texts of messages that are there: of each its conversation, its key, the text. False if one is not there."""
    rows = [{"of": conversation, "named": key, "said": clean(text)} for conversation, key, text in texts]
    return not rows or connection.execute(_NEW_TEXT, rows).rowcount == len(rows)


def remove_messages(connection: Connection, conversation: str, keys: set[str]) -> None:
    if keys:
        connection.execute(
            delete(MESSAGES).where(MESSAGES.c.conversation_id == conversation, MESSAGES.c.key.in_(sorted(keys)))
        )


def read_messages(connection: Connection, conversation: str) -> tuple[KeptMessage, ...]:
    """Parents before children, siblings in their order."""
    of_it = MESSAGES.c.conversation_id == conversation
    rows = connection.execute(select(MESSAGES).where(of_it).order_by(MESSAGES.c.position, MESSAGES.c.key)).all()
    generations = {
        row.message_key: Generation(**{name: getattr(row, name) for name in _GENERATION_FIELDS})
        for row in connection.execute(select(GENERATIONS).where(GENERATIONS.c.conversation_id == conversation))
    }
    feedback = {
        row.message_key: row
        for row in connection.execute(select(FEEDBACK).where(FEEDBACK.c.conversation_id == conversation))
    }
    pictures: dict[str, list[KeptPicture]] = {}
    for row in connection.execute(
        select(MESSAGE_IMAGES)
        .where(MESSAGE_IMAGES.c.conversation_id == conversation)
        .order_by(MESSAGE_IMAGES.c.position)
    ):
        picture = KeptPicture(row.name, row.mime, row.size, row.example, row.sha256)
        pictures.setdefault(row.message_key, []).append(picture)
    children: dict[str | None, list[Row[Any]]] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row)
    ordered: list[KeptMessage] = []
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        row = waiting.pop()
        rated = feedback.get(row.key)
        message = KeptMessage(row.key, row.parent, row.role, row.position, row.shown, row.text)
        ordered.append(
            replace(
                message,
                pictures=tuple(pictures.get(row.key, ())),
                generation=generations.get(row.key),
                rating=rated.rating if rated else "",
                flagged=rated.flagged if rated else False,
            )
        )
        waiting += reversed(children.get(row.key, []))
    return tuple(ordered)


def shown_path(messages: Sequence[KeptMessage]) -> tuple[KeptMessage, ...]:
    """From the first question down: of each row of siblings the one that is shown."""
    shown = {message.parent: message for message in messages if message.shown}
    path: list[KeptMessage] = []
    while (found := shown.get(path[-1].key if path else None)) is not None:
        path.append(found)
    return tuple(path)


def clean(text: str) -> str:
    """As every database takes it: without NUL and without halves of characters."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


def _generation_row(generation: Generation) -> dict[str, Any]:
    row = asdict(generation)
    row["model"] = clean(generation.model)[:200]
    row["error_message"] = clean(generation.error_message) if generation.error_message else None
    row["parameters"] = dict(generation.parameters)
    return row
