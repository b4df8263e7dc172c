"""Puts the ids that an answer was generated with back into a prompt that only knows its text.

Between turns a client keeps text. Tokenised again it may give other ids than the model drew, and the kept keys and
values would end to match inside the answer. Where the text is the same, the ids of the kept chat are the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llava_core.checkpoints.base import PlacedImage, Prompt
from llava_core.engines.transformers.kv import Kept
from llava_core.engines.transformers.sequence import common_prefix, virtual_prompt

_MAY_DIFFER_AT_END = 4
"""Last ids of an answer that its text may lack: a stop string, white space that a page trims."""


def rejoin(prompt: Prompt, kept: Kept, decode: Callable[[list[int]], str]) -> Prompt:
    """The prompt with the kept chat's ids in its answers; the same object where there is nothing to change."""
    for start, end in kept.answers:
        same = common_prefix(virtual_prompt(prompt), kept.virtual)
        if same >= end:
            continue
        if same < start:
            break
        joined = _with_answer(prompt, kept, start, end, decode)
        if joined is None:
            break
        prompt = joined
    return prompt


def _with_answer(prompt: Prompt, kept: Kept, start: int, end: int, decode: Callable[[list[int]], str]) -> Prompt | None:
    following = next((placed.start for placed in prompt.images if placed.start > start), len(prompt.ids))
    # Other ids for one text are at most about as many as its bytes, and few more than were generated.
    ids = list(prompt.ids[start : min(following, start + 4 * (end - start) + 16)])
    for last in range(end, max(start, end - _MAY_DIFFER_AT_END), -1):
        answer = [int(token) for token in kept.virtual[start:last]]
        count = _count_of(ids, decode(answer), decode)
        if count is not None:
            moved = len(answer) - count
            images = tuple(
                placed if placed.start < start else PlacedImage(placed.start + moved, placed.image)
                for placed in prompt.images
            )
            joined = (*prompt.ids[:start], *answer, *prompt.ids[start + count :])
            return replace(prompt, ids=joined, images=images)
    return None


def _count_of(ids: list[int], text: str, decode: Callable[[list[int]], str]) -> int | None:
    """How many of `ids` decode to exactly `text`; lengths grow with the count, so halving finds it.

    Blanks at the start do not count: a template may put one before an answer that began with one of its own.
    """
    text = text.lstrip(" ")
    if not text:
        return None
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(decode(ids[:middle]).lstrip(" ")) < len(text):
            low = middle + 1
        else:
            high = middle
    return low if decode(ids[:low]).lstrip(" ") == text else None
