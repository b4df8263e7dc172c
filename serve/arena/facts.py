"""What ratings and filters need to know of a battle's two chats: their words, their style, their category."""

from __future__ import annotations

import re

from serve.page.session import Chat
from serve.store.battles import Conversation, Style

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_HEADER = re.compile(r"^#{1,6}\s+\S", re.MULTILINE)
_LIST = re.compile(r"^[^\S\n]*(?:[-*+]|\d+[.)])\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


def conversation_of(chat: Chat) -> Conversation:
    return tuple((turn.text, turn.answer.text) for turn in chat.turns)


def questions_of(chat: Chat) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What was asked, with which pictures: the same for both sides of a fair battle."""
    return tuple((turn.text, tuple(picture.path for picture in turn.pictures)) for turn in chat.turns)


def style_of(chat: Chat) -> Style:
    text = "\n".join(turn.answer.text for turn in chat.turns)
    plain = _CODE.sub("", text)
    return Style(len(text.split()), *(len(mark.findall(plain)) for mark in (_HEADER, _LIST, _BOLD)))


def categories_of(chat: Chat, long_question: int) -> tuple[str, ...]:
    seen = any(turn.pictures for turn in chat.turns)
    long = sum(len(turn.text) for turn in chat.turns) >= long_question
    return ("picture" if seen else "text", *(("long",) if long else ()))


def is_complete(chat: Chat) -> bool:
    """Whether the last answer was said to its end and says something."""
    answer = chat.turns[-1].answer if chat.turns else None
    return bool(answer and answer.state == "done" and answer.text.strip())
