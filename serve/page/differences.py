"""Where answers to the same question differ, word by word: by difflib, without regard to case and punctuation."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, cast

from llava_core.config import CompareLimits
from llava_core.errors import BadRequest

Span = tuple[int, int]
"""From one word up to, not including, another."""


def differing(answers: Sequence[Sequence[str]], base: int = 0) -> list[list[Span]]:
    """For each answer the words that the one at `base` does not have; for that one those that no other has."""
    plain = [[_plain(word) for word in words] for words in answers]
    alone = [True] * len(plain[base])
    found: list[list[Span]] = []
    for place, other in enumerate(plain):
        theirs: list[Span] = []
        found.append(theirs)
        if place == base:
            continue
        for kind, start, end, from_, to in SequenceMatcher(None, plain[base], other).get_opcodes():
            if kind == "equal":
                alone[start:end] = [False] * (end - start)
            elif to > from_:
                theirs.append((from_, to))
    if len(answers) > 1:
        found[base] = _spans(alone)
    return found


def read_base(given: Any, turns: Sequence[Sequence[Any]]) -> int:
    """The column that the others are compared with. Raises BadRequest for one that is not there."""
    if not isinstance(given, int) or not all(0 <= given < len(answers) for answers in turns):
        raise BadRequest("these answers cannot be compared; reload the page", param="base")
    return given


def read_answers(message: Any) -> list[list[list[str]]]:
    """Per turn the words of each answer, as the browser sent them. Raises BadRequest for anything else."""
    limits = CompareLimits()
    turns = cast("list[Any]", message) if isinstance(message, list) else []
    words = 0
    for turn in turns:
        if not isinstance(turn, list) or not 1 <= len(cast("list[Any]", turn)) <= limits.columns:
            raise BadRequest("these answers cannot be compared; reload the page", param="turns")
        for answer in cast("list[Any]", turn):
            if not isinstance(answer, list) or not all(isinstance(word, str) for word in cast("list[Any]", answer)):
                raise BadRequest("these answers cannot be compared; reload the page", param="turns")
            words += len(cast("list[Any]", answer))
    if words > limits.words:
        raise BadRequest(f"the answers have {words} words, more than the {limits.words} that can be compared")
    return cast("list[list[list[str]]]", turns)


def _plain(word: str) -> str:
    return "".join(letter for letter in word.casefold() if letter.isalnum()) or word


def _spans(marked: Sequence[bool]) -> list[Span]:
    spans: list[Span] = []
    for place, is_marked in enumerate(marked):
        if is_marked and spans and spans[-1][1] == place:
            spans[-1] = (spans[-1][0], place + 1)
        elif is_marked:
            spans.append((place, place + 1))
    return spans
