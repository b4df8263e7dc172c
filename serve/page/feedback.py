"""Likes, dislikes and flags: appended to a JSONL file where the operator asked for it, else only shown."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.page.session import Answer, Chat, Turn

WHAT_IS_KEPT = (
    "Ratings and flags are kept on this server with the question, the answer, the chat before it and the model's name. "
    "Pictures are not kept, only their fingerprints."
)
NOTHING_IS_KEPT = "Ratings and flags stay in this chat; this server keeps no record of them."


def _now() -> datetime:
    return datetime.now(UTC)


class Feedback:
    """Where ratings go. `path` None keeps nothing."""

    def __init__(self, path: Path | None, clock: Callable[[], datetime] = _now) -> None:
        self._path = path
        self._clock = clock
        self._lock = asyncio.Lock()

    @property
    def promise(self) -> str:
        """What the page says about it."""
        return WHAT_IS_KEPT if self._path else NOTHING_IS_KEPT

    async def keep(self, chat: Chat, turn: Turn, answer: Answer) -> None:
        """One line per change of mind; the last line about an answer counts."""
        if self._path is None:
            return
        async with self._lock:
            await asyncio.to_thread(_append, self._path, chat, turn, answer, self._clock())


def _append(path: Path, chat: Chat, turn: Turn, answer: Answer, when: datetime) -> None:
    earlier = chat.turns[: chat.turns.index(turn)] if turn in chat.turns else ()
    record: dict[str, Any] = {
        "time": when.isoformat(timespec="seconds"),
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
