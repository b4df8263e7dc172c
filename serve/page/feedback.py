"""Likes, dislikes and flags: appended to a JSONL file where the operator asked for it, else only shown."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.page.session import Answer, Chat, Turn

WHAT_IS_KEPT = (
    "Ratings and flags are kept on this server with the question, the answer, the chat before it and the model's name. "
    "Pictures are not kept, only their fingerprints. What you rated in a chat goes when you delete the chat."
)
NOTHING_IS_KEPT = "Ratings and flags are kept with the chat and go with it; this server keeps no other record of them."


def _now() -> datetime:
    return datetime.now(UTC)


class Feedback:
    """Where ratings go. `path` None keeps nothing."""

    def __init__(self, path: Path | None, clock: Callable[[], datetime] = _now) -> None:
        self._path = path
        self._clock = clock
        self._lock = asyncio.Lock()

    @property
    def is_on(self) -> bool:
        return self._path is not None

    @property
    def promise(self) -> str:
        """What the page says about it."""
        return WHAT_IS_KEPT if self._path else NOTHING_IS_KEPT

    async def keep(self, room: str, chat: Chat, turn: Turn, answer: Answer) -> None:
        """One line per change of mind; the last line about an answer counts."""
        if self._path is None:
            return
        async with self._lock:
            await asyncio.to_thread(_append, self._path, room, chat, turn, answer, self._clock())

    async def forget(self, rooms: Iterable[str]) -> None:
        """Take out every line about the chats in these rooms."""
        if self._path is None:
            return
        async with self._lock:
            await asyncio.to_thread(_without, self._path, {_name_of(room) for room in rooms})


def _name_of(room: str) -> str:
    """The chat's name in the file: the same for all its lines, and no way back to the room."""
    return hashlib.sha256(f"feedback {room}".encode()).hexdigest()[:24]


def _without(path: Path, names: set[str]) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not (line.strip() and json.loads(line).get("chat") in names)]
    if len(kept) < len(lines):
        part = path.with_suffix(".part")
        part.write_text("".join(kept), encoding="utf-8")
        part.replace(path)


def _append(path: Path, room: str, chat: Chat, turn: Turn, answer: Answer, when: datetime) -> None:
    earlier = chat.turns[: chat.turns.index(turn)] if turn in chat.turns else ()
    record: dict[str, Any] = {
        "time": when.isoformat(timespec="seconds"),
        "chat": _name_of(room),
        "rating": answer.rating,
        "flagged": answer.flagged,
        "model": answer.model,
        "question": turn.text,
        "answer": answer.text,
        "pictures": [_fingerprint(picture.path) for picture in turn.pictures],
        "before": [{"question": past.text, "answer": past.answer.text} for past in earlier],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _fingerprint(path: str) -> str:
    try:
        return "sha256:" + hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "gone"
