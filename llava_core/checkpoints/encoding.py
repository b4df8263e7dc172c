"""Text to ids, from where it stops to be what was encoded before: a chat's next prompt begins as the last one did.

`tokenizers` cuts a text at its special tokens before it looks at anything else, so what stands before such a token and
what stands behind it are encoded independently of each other. The token itself is encoded again with what follows it,
since white space behind it may belong to it, and since some tokenizers treat the beginning of a text differently.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict

from tokenizers import Tokenizer

_MOST_KEPT = 64
_MOST_CHARS = 1 << 20
"""Of all that is kept together."""
_PROBE = " a b  c\nd"


class TextEncoder:
    """`encode` as the tokenizer's own, in time for what is new. Safe to use from any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before, self._behind = _frame(tokenizer)
        self._breaks = _breaks(tokenizer)
        self._kept: OrderedDict[str, list[int]] = OrderedDict()
        self._chars = 0
        self._lock = threading.Lock()
        if self._breaks is not None and not self._is_exact():
            self._breaks = None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """`special` adds what the tokenizer puts around every text."""
        if self._breaks is None:
            return self._tokenizer.encode(text, add_special_tokens=special).ids
        ids = self._joined(text)
        return [*self._before, *ids, *self._behind] if special else ids

    def _joined(self, text: str) -> list[int]:
        assert self._breaks is not None
        breaks = [(match.start(), match.end()) for match in self._breaks.finditer(text)]
        ids: list[int] = []
        at = 0
        """Where what `ids` stand for ends with a break, which is encoded again and left out."""
        for start, end in reversed(breaks):
            known = self._known(text[:end])
            if known is not None:
                ids, at = list(known), start
                break
        if breaks and breaks[-1][0] > at:
            start, end = breaks[-1]
            ids += self._piece(text[at:end], follows=bool(ids))
            self._keep(text[:end], ids)
            at = start
        return ids + self._piece(text[at:], follows=bool(ids))

    def _piece(self, text: str, *, follows: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids[follows:]

    def _known(self, text: str) -> list[int] | None:
        with self._lock:
            known = self._kept.get(text)
            if known is not None:
                self._kept.move_to_end(text)
            return known

    def _keep(self, text: str, ids: list[int]) -> None:
        if len(text) > _MOST_CHARS // 4:
            return
        with self._lock:
            if text not in self._kept:
                self._chars += len(text)
            self._kept[text] = list(ids)
            while len(self._kept) > _MOST_KEPT or self._chars > _MOST_CHARS:
                gone, _ = self._kept.popitem(last=False)
                self._chars -= len(gone)

    def _is_exact(self) -> bool:
        """Whether a text in pieces gets the ids of the whole, tried at every kind of break."""
        assert self._breaks is not None
        tokens = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        for token in tokens:
            if self._breaks.fullmatch(token):
                text = f"{_PROBE}{token}{_PROBE} {token}{token}{_PROBE}"
                for special in (False, True):
                    whole = self._tokenizer.encode(text, add_special_tokens=special).ids
                    for _ in range(2):
                        if self.encode(text, special=special) != whole:
                            return False
        self._kept.clear()
        self._chars = 0
        return True


def _breaks(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """The tokens at which a text may be cut, longest first; None where there are none."""
    added = tokenizer.get_added_tokens_decoder().values()
    usable = [token.content for token in added if token.special and not token.normalized and not token.single_word]
    if not usable:
        return None
    return re.compile("|".join(re.escape(content) for content in sorted(usable, key=len, reverse=True)))


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text when asked for its special tokens."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    framed = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return [], []
