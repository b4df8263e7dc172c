"""A chat as the plain data that the page's script draws: HTML only where Markdown became it, else text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from serve.page.markdown import GrowingText, blocks
from serve.page.session import Answer, Chat, Figures, Notice, Picture, Turn

TITLES = {
    "BadRequest": "This request cannot be sent",
    "ContextOverflow": "This chat is too long for the model",
    "BadImage": "A picture cannot be used",
    "ContentRefused": "This is not answered here",
    "ContentFlagged": "This answer was flagged",
    "ModerationFailed": "Nobody could look it over",
    "UnknownModel": "This model is not running",
    "Unauthorized": "Not allowed",
    "Overloaded": "Everybody is asking at once",
    "NoWorker": "Nobody is there to answer",
    "WorkerLost": "The connection to the model was lost",
    "WorkerTimeout": "The model took too long",
    "OutOfMemory": "The model ran out of memory",
    "Interrupted": "This answer was cut off",
}


_LONG_S = 0.02
_REST = 9.0
"""So many times as long as it took nothing is rendered again, so that it never takes more than a tenth of the time."""


class Drawer:
    """Turns one room's chat into view data and remembers what it has rendered. Of a growing answer that takes long to
    render there is a new look the more seldom: everybody else waits meanwhile."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.thread_time
    ) -> None:
        """`spent` tells what this thread has computed."""
        self._clock, self._spent = clock, spent
        self._growing: dict[str, GrowingText] = {}
        self._rests_until: dict[str, float] = {}
        self._rendered: dict[str, tuple[str, bool, tuple[str, ...]]] = {}

    def unrendered(self, chat: Chat) -> int:
        """Characters of answers that `view` would render."""
        texts = ((turn.answer.text, self._rendered.get(turn.answer.id, ("",))[0]) for turn in chat.turns)
        return sum(len(text) for text, rendered in texts if text != rendered)

    def view(self, chat: Chat, revision: int) -> dict[str, Any]:
        answers = {answer.id for turn in chat.turns for answer in turn.answers}
        for store in (self._growing, self._rests_until, self._rendered):
            for gone in store.keys() - answers:
                del store[gone]
        return {
            "revision": revision,
            "running": chat.running is not None,
            "restorable": chat.before is not None,
            "turns": [self._turn(chat, turn) for turn in chat.turns],
        }

    def _turn(self, chat: Chat, turn: Turn) -> dict[str, Any]:
        last = turn is chat.turns[-1]
        return {
            "id": turn.id,
            "text": turn.text,
            "pictures": [_picture(picture) for picture in turn.pictures],
            "answers": len(turn.answers),
            "shown": turn.shown,
            "wordings": len(turn.earlier) + 1 + len(turn.later),
            "wording": len(turn.earlier),
            "left_out": not turn.answer.text and not (last and turn.answer.is_running),
            "answer": self._answer(turn.answer),
        }

    def _answer(self, answer: Answer) -> dict[str, Any]:
        return {
            "id": answer.id,
            "model": answer.model,
            "state": answer.state,
            "blocks": list(self.blocks(answer)),
            # The raw text is what the copy button copies; a running answer has no such button yet.
            "text": "" if answer.is_running else answer.text,
            "notice": _notice(answer.notice),
            "figures": _figures(answer.figures),
            "cut": answer.finish_reason == "length",
            "rating": answer.rating,
            "flagged": answer.flagged,
        }

    def blocks(self, answer: Answer) -> tuple[str, ...]:
        """The answer's text as HTML; rendered once, however many readers look."""
        text, final, rendered = self._rendered.get(answer.id, ("", False, ()))
        if text == answer.text and final == (not answer.is_running):
            return rendered
        if answer.is_running:
            if self._clock() < self._rests_until.get(answer.id, 0.0):
                return rendered
            began = self._spent()
            rendered = self._growing.setdefault(answer.id, GrowingText()).blocks(answer.text)
            if (took := self._spent() - began) > _LONG_S:
                self._rests_until[answer.id] = self._clock() + _REST * took
        else:
            self._growing.pop(answer.id, None)
            rendered = blocks(answer.text)
        self._rendered[answer.id] = (answer.text, not answer.is_running, rendered)
        return rendered


def _picture(picture: Picture) -> dict[str, Any]:
    """With what the browser sends back to ask with the same picture again."""
    claim = {"example": picture.example} if picture.example else {"path": picture.path}
    return {"name": picture.name, "url": picture.url, "size": picture.size, **claim}


def _notice(notice: Notice | None) -> dict[str, Any] | None:
    if notice is None:
        return None
    return {
        "code": notice.code,
        "title": TITLES.get(notice.code, "The answer failed"),
        "message": notice.message[:1].upper() + notice.message[1:],
        # The same question with a picture nobody can read, or refused as it stands, fails again; it has to be edited.
        "retry": notice.code not in ("BadImage", "ContentRefused", "ContentFlagged"),
        "after": notice.retry_after,
    }


def _figures(figures: Figures | None) -> dict[str, Any] | None:
    if figures is None:
        return None
    usage = figures.usage
    return {
        "first_token_s": round(figures.first_token_s, 3),
        "tokens_per_s": figures.tokens_per_s and round(figures.tokens_per_s, 2),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "image_tokens": usage.image_tokens,
        "cached_tokens": usage.cached_tokens,
    }
