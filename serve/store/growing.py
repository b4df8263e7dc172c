"""Finds chats of which only texts have grown since they were last written: an answer on its way, a few times a second.

Nothing else of them needs to be looked at or written, so that all of them together cost about as much as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from serve.store.records import KeptMessage, KeptPicture

Texts = list[tuple[str, str]]
"""Keys of messages, and what they say now."""


def grown_texts(
    before: Sequence[KeptMessage], now: Sequence[KeptMessage], hash_of: Callable[[str], str | None]
) -> tuple[tuple[KeptMessage, ...], Texts] | None:
    """The messages as they are kept once the texts are written; None where more than texts differs.

    `hash_of` knows under which hash the picture in a file is stored.
    """
    if len(before) != len(now):
        return None
    texts: Texts = []
    messages: list[KeptMessage] = []
    for old, new in zip(before, now, strict=True):
        if new.pictures:
            new = replace(new, pictures=tuple(_stored(picture, hash_of) for picture in new.pictures))
        if old != new:
            if replace(new, text=old.text) != old:
                return None
            texts.append((new.key, new.text))
        messages.append(new)
    return tuple(messages), texts


def _stored(picture: KeptPicture, hash_of: Callable[[str], str | None]) -> KeptPicture:
    return replace(picture, sha256=picture.sha256 or hash_of(picture.file), file="")
