"""Guesses the next tokens from the chat itself: after the same three tokens as before come the same ones again.

Guesses are computed beside the token that is due, in the same pass, and kept as far as the model would have drawn
them. A few more rows cost a small batch next to nothing, and quotes, lists and code repeat a lot.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq

from llava_core.types import Sampling

_GRAM = 3
_FIRST, _MOST = 3, 8
_LONGEST_PAUSE = 64


def may_speculate(sampling: Sampling) -> bool:
    """Only where each token is the likeliest one and nothing but the text decides which that is."""
    return (
        sampling.temperature == 0
        and sampling.repetition_penalty == 1.0
        and not (sampling.presence_penalty or sampling.frequency_penalty or sampling.logit_bias)
        and sampling.logprobs is None
        and sampling.grammar is None
        and not sampling.min_tokens
    )


class Lookup:
    """The guesses of one request: longer while they come true, none for a while when they do not."""

    def __init__(self, never: Collection[int]) -> None:
        """Ids in `never` (picture placeholders, ends) are not guessed."""
        self._never = never
        self._follows: dict[tuple[int, ...], int] = {}
        self._known = 0
        self._length = _FIRST
        self._misses = 0
        self._rest = 0

    def guess(self, ids: Seq[int], most: int) -> tuple[int, ...]:
        """Up to `most` ids that may come next."""
        for at in range(max(self._known, _GRAM), len(ids)):
            self._follows[tuple(ids[at - _GRAM : at])] = at
        self._known = len(ids)
        if self._rest:
            self._rest -= 1
            return ()
        start = self._follows.get(tuple(ids[-_GRAM:]))
        if start is None:
            return ()
        found = ids[start : start + min(self._length, most)]
        end = next((place for place, token in enumerate(found) if token in self._never), len(found))
        return tuple(found[:end])

    def told(self, guessed: int, right: int) -> None:
        """How many of the last guesses came true."""
        if right:
            self._misses = 0
            self._length = min(self._length * 2, _MOST) if right == guessed else max(right, 1)
            return
        self._misses += 1
        self._length = _FIRST
        self._rest = min(1 << self._misses, _LONGEST_PAUSE)
