"""A comparison as a file to keep: JSON with a chat for each column, or Markdown with answers below questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import zip_longest

from serve.page.export import COMPARISON, SYSTEM, answered, asked, document_of
from serve.page.session import Chat, Turn

LETTERS = "ABCD"

Column = tuple[Chat, str]
"""With its system prompt."""


def to_json(columns: Sequence[Column], data_urls: Mapping[str, str], when: datetime) -> str:
    """`bring_in.py` reads it again; each of its columns is what a chat by itself would be."""
    document = {
        "format": COMPARISON,
        "exported_at": when.isoformat(timespec="seconds"),
        "columns": [document_of(chat, data_urls, system, when) for chat, system in columns],
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def to_markdown(columns: Sequence[Column], data_urls: Mapping[str, str], when: datetime) -> str:
    """What is shown, to read. Where columns were not asked the same, each question stands above its own answers."""
    lines = [f"# Comparison of {when:%d %B %Y, %H:%M}", ""]
    for letter, (_, system) in zip(LETTERS, columns, strict=False):
        if system.strip():
            lines += [f"{SYSTEM}{letter}: " + system.strip().replace("\n", "\n> "), ""]
    targets: list[str] = []
    for row in zip_longest(*(chat.turns for chat, _ in columns)):
        questions: dict[tuple[object, ...], list[tuple[str, Turn]]] = {}
        for letter, turn in zip(LETTERS, row, strict=False):
            if turn:
                question = (turn.text, *(picture.path for picture in turn.pictures))
                questions.setdefault(question, []).append((letter, turn))
        for turns in questions.values():
            lines += asked(turns[0][1], data_urls, targets)
            for letter, turn in turns:
                lines += answered(turn.answer, f"{letter}: {turn.answer.model}")
    return "\n".join([*lines, *targets]).rstrip() + "\n"
