"""Pictures in the store: each once, under the hash of what is kept of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, delete, exists, select

from serve.store.database import upsert
from serve.store.strip import stripped
from serve.store.tables import IMAGES, MESSAGE_IMAGES


@dataclass(frozen=True)
class StoredImage:
    mime: str
    data: bytes


def read_picture(file: Path, *, original: bool = False) -> tuple[str, StoredImage] | None:
    """What is kept of the picture in `file`, with its hash; None where it has gone or is no picture we know.

    `original` keeps every byte; else what cameras and programs wrote into it is left out.
    """
    try:
        data = file.read_bytes()
    except OSError:
        return None
    found = stripped(data)
    if found is None:
        return None
    image = StoredImage(found[1], data if original else found[0])
    return hashlib.sha256(image.data).hexdigest(), image


def stored_image(connection: Connection, sha256: str) -> bool:
    return connection.scalar(select(IMAGES.c.sha256).where(IMAGES.c.sha256 == sha256)) is not None


def keep_image(connection: Connection, sha256: str, image: StoredImage, now: datetime) -> None:
    if not stored_image(connection, sha256):
        row = {"sha256": sha256, "mime": image.mime, "size": len(image.data), "data": image.data, "created_at": now}
        upsert(connection, IMAGES, [row])


def fetch_image(connection: Connection, sha256: str) -> StoredImage | None:
    row = connection.execute(select(IMAGES.c.mime, IMAGES.c.data).where(IMAGES.c.sha256 == sha256)).one_or_none()
    return None if row is None else StoredImage(row.mime, bytes(row.data))


def sweep_images(connection: Connection, among: Collection[str] | None = None) -> int:
    """Forget pictures that no message has any more; how many those were."""
    unused = ~exists().where(MESSAGE_IMAGES.c.sha256 == IMAGES.c.sha256)
    statement = delete(IMAGES).where(unused)
    if among is not None:
        statement = statement.where(IMAGES.c.sha256.in_(among))
    return connection.execute(statement).rowcount
