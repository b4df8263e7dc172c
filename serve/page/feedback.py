"""Likes, dislikes and flags: appended to a JSONL file where the operator asked for it, else only shown."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from serve.page.session import Answer, Chat, Turn

log = logging.getLogger(__name__)

WHAT_IS_KEPT = (
    "Ratings and flags are kept on this server with the question, the answer, the chat before it and the model's name. "
    "Pictures are not kept, only their fingerprints."
)
NOTHING_IS_KEPT = "Ratings and flags are kept with the chat and go with it; this server keeps no other record of them."


def _now() -> datetime:
    return datetime.now(UTC)


class Feedback:
    """Where ratings go. `path` None keeps nothing, `keep_days` 0 keeps them until their chat is deleted."""

    def __init__(
        self, path: Path | None, keep_days: int = 0, clock: Callable[[], datetime] = _now, *, deletable: bool = True
    ) -> None:
        """`deletable` says whether people can delete chats here."""
        self._path = path
        self._keep_days = keep_days
        self._clock = clock
        self._deletable = deletable
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        return self._path is not None

    @property
    def promise(self) -> str:
        """What the page says about it."""
        if self._path is None:
            return NOTHING_IS_KEPT
        ends = ["when you delete the chat"] if self._deletable else []
        ends += [f"after {self._keep_days} days"] if self._keep_days else []
        return f"{WHAT_IS_KEPT} What you rated in a chat goes {', or '.join(ends)}." if ends else WHAT_IS_KEPT

    async def keep(self, room: str, owner: str, chat: Chat, turn: Turn, answer: Answer) -> None:
        """One line per change of mind; the last line about an answer counts."""
        if self._path is None:
            return
        record = {"time": self._clock().isoformat(timespec="seconds"), "chat": _name_of(room), "by": _name_of(owner)}
        await asyncio.to_thread(self._append, record, chat, turn, answer)

    async def forget(self, rooms: Iterable[str], owner: str = "") -> None:
        """Take out every line about the chats in these rooms, and all that this owner rated."""
        chats, by = {_name_of(room) for room in rooms}, _name_of(owner) if owner else ""
        await asyncio.to_thread(
            self._take_out, lambda record: record.get("chat") in chats or bool(by and record.get("by") == by)
        )

    def expire(self) -> None:
        """Take out what is older than it is kept; to be called now and then."""
        oldest = self._clock() - timedelta(days=self._keep_days)
        try:
            if self._keep_days:
                self._take_out(lambda record: datetime.fromisoformat(record["time"]) < oldest)
        except OSError as error:
            log.warning("old ratings could not be deleted from %s: %s", self._path, error)

    def _append(self, record: dict[str, Any], chat: Chat, turn: Turn, answer: Answer) -> None:
        if self._path is None:
            return
        line = json.dumps({**record, **_said(chat, turn, answer)}, ensure_ascii=False)
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab+") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                # A line that was cut off when the page was killed does not take this one with it.
                begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
                file.write(begin + line.encode("utf-8", "replace") + b"\n")

    def _take_out(self, which: Callable[[dict[str, Any]], bool]) -> None:
        if self._path is None:
            return
        with self._lock:
            if not self._path.exists():
                return
            # Answers may hold other signs that split lines.
            with self._path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                lines = list(file)
            kept = [line for line in lines if not _is_one(line, which)]
            if len(kept) < len(lines):
                part = self._path.with_suffix(".part")
                part.write_text("".join(kept), encoding="utf-8", newline="\n")
                part.replace(self._path)


def _name_of(secret: str) -> str:
    """The name of a chat or a browser in the file: the same in all its lines, and no way back to the secret."""
    return hashlib.sha256(f"feedback {secret}".encode()).hexdigest()[:24]


def _is_one(line: str, which: Callable[[dict[str, Any]], bool]) -> bool:
    """A line that was cut off as it was written might be anybody's, and counts as one."""
    try:
        return which(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        return True


def _said(chat: Chat, turn: Turn, answer: Answer) -> dict[str, Any]:
    earlier = chat.turns[: chat.turns.index(turn)] if turn in chat.turns else ()
    return {
        "rating": answer.rating,
        "flagged": answer.flagged,
        "model": answer.model,
        "question": turn.text,
        "answer": answer.text,
        "pictures": [_fingerprint(picture.path) for picture in turn.pictures],
        "before": [{"question": past.text, "answer": past.answer.text} for past in earlier],
    }


def _fingerprint(path: str) -> str:
    try:
        return "sha256:" + hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return "gone"
