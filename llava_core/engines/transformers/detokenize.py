"""Token ids to text as they come, holding back half characters and what may become a stop string."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

_UNFINISHED = "\ufffd"
_BLANK = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_MOST_HELD_IDS = 8
"""A character takes four bytes at most; ids that are still none by then are no character."""


def text_of_token(tokenizer: Tokenizer, token: int) -> str:
    """One token's own text, with the blank that some tokenizers leave out at the start of a text."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    starts_word = (tokenizer.id_to_token(token) or "").startswith(_BLANK)
    return f" {text}" if starts_word and not text.startswith(" ") else text


def texts_of_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, int]]:
    """The text that each of these ids adds, and how many it took: those of half a character count with the rest."""
    found: list[tuple[str, int]] = []
    before: list[int] = []
    held: list[int] = []
    for number, token in enumerate(ids, 1):
        held.append(token)
        whole = tokenizer.decode([*before, *held], skip_special_tokens=False)
        if whole.endswith(_UNFINISHED) and len(held) < _MOST_HELD_IDS and number < len(ids):
            continue
        known = tokenizer.decode(before, skip_special_tokens=False)
        text = whole[len(known) :] if before else whole
        if not before and len(held) == 1:
            text = text_of_token(tokenizer, token)
        found.append((text, len(held)))
        before, held = held, []
    return found


class Detokenizer:
    """The text of one answer. `before` are the ids it goes on from, where it continues a text.

    New ids are decoded together with those before them, which decide about spaces; `DecodeStream` of tokenizers does
    the same but raises on bytes that never become a character, and models do write such.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._ids = list(before)
        self._from = 0
        """Decoding starts at this id, a little before `_done`."""
        self._done = len(self._ids)
        """Ids whose text is part of `_text`."""
        self._text = ""
        self._emitted = 0
        self.stopped = False
        """Whether a stop string was met; text from it on is never given out."""

    @property
    def text(self) -> str:
        """Everything given out so far."""
        return self._text[: self._emitted]

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """Text that is certain now. With `may_stop` false, stop strings are passed over."""
        self._ids.append(token)
        return self._take(self._decode(finished=False), may_stop=may_stop)

    def finish(self) -> str:
        """What was held back, at the end of an answer. A character that was cut short is left out."""
        new = self._take(self._decode(finished=True), may_stop=True)
        return new if self.stopped else new + self._give(len(self._text))

    def _decode(self, *, finished: bool) -> str:
        """Text of the ids since `_done`, empty while it may be half a character."""
        known = self._tokenizer.decode(self._ids[self._from : self._done], skip_special_tokens=True)
        whole = self._tokenizer.decode(self._ids[self._from :], skip_special_tokens=True)
        held = len(self._ids) - self._done
        if whole.endswith(_UNFINISHED) and not finished and held < _MOST_HELD_IDS:
            return ""
        new = self._whole_characters() if finished and whole.endswith(_UNFINISHED) else whole[len(known) :]
        if new:
            self._from, self._done = self._done, len(self._ids)
        return new

    def _whole_characters(self) -> str:
        """Text of the last ids, which end in half a character, up to that."""
        held = self._ids[self._done :]
        names = [self._tokenizer.id_to_token(token) or "" for token in held]
        if all(_BYTE.fullmatch(name) for name in names):
            # Each byte of a run that is no text as a whole has a mark of its own, so the bytes themselves must tell.
            data = bytes(int(name[3:5], 16) for name in names)
            return codecs.getincrementaldecoder("utf-8")("replace").decode(data)
        # Elsewhere half a character has one mark.
        known = self._tokenizer.decode(self._ids[self._from : self._done], skip_special_tokens=True)
        whole = self._tokenizer.decode(self._ids[self._from :], skip_special_tokens=True)
        return whole[len(known) :].removesuffix(_UNFINISHED)

    def _take(self, new: str, *, may_stop: bool) -> str:
        if not new or self.stopped:
            return ""
        searched = max(self._emitted, len(self._text) - self._longest)
        self._text += new
        if not may_stop:
            return self._give(len(self._text))
        found = [at for stop in self._stops if (at := self._text.find(stop, searched)) >= 0]
        if found:
            self.stopped = True
            self._text = self._text[: min(found)]
            return self._give(len(self._text))
        return self._give(len(self._text) - self._held())

    def _give(self, end: int) -> str:
        end = max(end, self._emitted)
        text = self._text[self._emitted : end]
        self._emitted = end
        return text

    def _held(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        pending = self._text[self._emitted :]
        for size in range(min(len(pending), self._longest - 1), 0, -1):
            if any(stop.startswith(pending[-size:]) for stop in self._stops):
                return size
        return 0
