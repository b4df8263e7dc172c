"""The store of keys and values: regions of running requests, and of ended ones parked for the turn that follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from llava_core.checkpoints.base import Prompt
from llava_core.engines.transformers.attention import AttentionBackend, Region
from llava_core.engines.transformers.sequence import Sequence, common_prefix, virtual_prompt

_WORTH_COPYING = 16
"""Tokens; a shorter common prefix is computed anew."""
_WORTH_WAITING = 64
"""Tokens; fewer are computed at once, though a neighbour is about to compute them too."""
_WORTH_KEEPING = 64
"""Tokens; an entry whose tail is longer, or shows a picture, is copied from instead of taken over, so that its branch
stays usable."""

Rejoin = Callable[[Prompt, "Kept"], Prompt]
"""A prompt with the ids a kept chat was generated with, where the prompt's text is the same."""


@dataclass(eq=False)
class Kept:
    """A chat whose keys and values are there: `virtual[:computed]`.

    `answers` are the places of generated text in it; the last generated id may not be computed.
    """

    owner: str
    virtual: np.ndarray
    computed: int
    region: Region
    answers: tuple[tuple[int, int], ...] = ()


@dataclass
class KVStore:
    """Bounded by what the backend holds. A request either fits, beside the running ones, or waits."""

    backend: AttentionBackend
    context_length: int
    positions: Callable[[Prompt], torch.Tensor | None]
    """Position ids of a prompt, where its family needs more than a count."""
    share_between_owners: bool = False
    rejoin: Rejoin | None = None
    is_short: Callable[[], bool] = lambda: False
    """Whether memory outside of this store runs out, so that parked chats must go though they are within bounds."""
    parked: list[Kept] = field(default_factory=list[Kept])
    """Least recently used first."""
    _running: dict[Sequence, tuple[tuple[int, int], ...]] = field(
        default_factory=dict[Sequence, tuple[tuple[int, int], ...]]
    )
    """The requests that hold a region, with the answers that their prompts are known to hold."""

    @property
    def running_tokens(self) -> int:
        # Copied first, since other threads may ask too.
        regions = (sequence.region for sequence in list(self._running))
        return sum(region.tokens for region in regions if region is not None)

    @property
    def parked_tokens(self) -> int:
        return sum(kept.region.tokens for kept in list(self.parked))

    @property
    def bytes(self) -> int:
        return (self.running_tokens + self.parked_tokens) * self.backend.bytes_per_token

    def admit(self, sequence: Sequence) -> bool:
        """Give the request its region, filled as far as a kept chat begins the same way; False if it must wait."""
        if self.running_tokens + sequence.reserve > self.backend.total_tokens:
            return False
        source, prompt, length = self._best(sequence)
        if source is None or not self._begin_from(sequence, source, prompt, length):
            region = self._allocate(sequence.reserve, keep=None)
            if region is None:
                return False
            sequence.region = region
            self._running[sequence] = ()
        return True

    def comes_soon(self, sequence: Sequence) -> bool:
        """Whether a running request is about to compute much of what this one needs: several answers to one prompt,
        say. Waiting for it is cheaper than computing the same beside it."""
        wanted = sequence.virtual
        for other in self._running:
            if other.decoding or not self._may_share(other.owner, sequence.owner):
                continue
            same = common_prefix(wanted, other.virtual)
            if min(same, len(wanted) - 1) >= other.computed + _WORTH_WAITING:
                return True
        return False

    def park(self, sequence: Sequence, *, answer_end: int) -> None:
        """The request ended; keep what it computed. Ids from `answer_end` on are no part of its text."""
        region = sequence.region
        if region is None:
            return
        answers = self._running.pop(sequence)
        sequence.region = None
        if sequence.computed < _WORTH_COPYING:
            self.backend.release(region)
            return
        if answer_end > sequence.prompt_length:
            answers = (*answers, (sequence.prompt_length, answer_end))
        kept = Kept(sequence.owner, _virtual(sequence), sequence.computed, region, answers)
        for other in [other for other in self.parked if _covers(kept, other)]:
            self._drop(other)
        self.backend.resize(region, sequence.computed)
        self.parked.append(kept)
        while self.parked and self.is_short():
            self._drop(self.parked[0])

    def forget(self, sequence: Sequence) -> None:
        """The request failed; nothing of it can be trusted."""
        if sequence.region is not None:
            del self._running[sequence]
            self.backend.release(sequence.region)
            sequence.region = None

    def clear(self) -> None:
        """Give up all parked chats."""
        while self.parked:
            self._drop(self.parked[0])

    def _best(self, sequence: Sequence) -> tuple[Kept | None, Prompt, int]:
        """The kept chat with the longest common beginning, and the prompt rejoined to it."""
        best: tuple[Kept | None, Prompt, int] = (None, sequence.prompt, _WORTH_COPYING - 1)
        for kept in self._candidates(sequence):
            prompt = sequence.prompt
            same = common_prefix(sequence.virtual, kept.virtual)
            length = min(same, kept.computed, _most_reused(sequence, prompt))
            # Only a difference inside an answer can be one of spelling.
            if self.rejoin is not None and any(start <= same < end for start, end in kept.answers):
                rejoined = self.rejoin(prompt, kept)
                if rejoined is not prompt and len(rejoined.ids) + sequence.max_new <= self.context_length:
                    prompt = rejoined
                    same = common_prefix(virtual_prompt(prompt), kept.virtual)
                    length = min(same, kept.computed, _most_reused(sequence, prompt))
            if length > best[2]:
                best = (kept, prompt, length)
        return best

    def _candidates(self, sequence: Sequence) -> Iterable[Kept]:
        # Parked ones first, latest first: they can be taken over without a copy.
        yield from (kept for kept in reversed(self.parked) if self._may_share(kept.owner, sequence.owner))
        for other, answers in self._running.items():
            if other.region is not None and self._may_share(other.owner, sequence.owner):
                yield Kept(other.owner, _virtual(other), other.computed, other.region, answers)

    def _may_share(self, one: str, other: str) -> bool:
        return self.share_between_owners or one == other

    def _begin_from(self, sequence: Sequence, source: Kept, prompt: Prompt, length: int) -> bool:
        """Take over or copy from `source`; False if there is no room for it."""
        tokens = len(prompt.ids) + sequence.max_new
        if self.running_tokens + tokens > self.backend.total_tokens:
            return False
        is_parked = source in self.parked
        tail = source.virtual[length:]
        taken = is_parked and len(tail) <= _WORTH_KEEPING and not (tail < 0).any()
        if taken and self._take_over(source, tokens):
            region = source.region
        else:
            region = self._allocate(tokens, keep=source)
            if region is None and is_parked and self._take_over(source, tokens):
                region, taken = source.region, True
            if region is None:
                return False
            if region is not source.region:
                self.backend.copy(source.region, region, length)
                if taken:
                    self._drop(source)
                elif is_parked:
                    self.parked.remove(source)
                    self.parked.append(source)
        if prompt is not sequence.prompt:
            sequence.take_prompt(prompt, self.positions(prompt))
        sequence.region = region
        sequence.computed = sequence.cached = length
        # The last id of an answer may be equal without being computed.
        same = common_prefix(virtual_prompt(prompt), source.virtual)
        self._running[sequence] = tuple((start, end) for start, end in source.answers if end <= same)
        return True

    def _take_over(self, source: Kept, tokens: int) -> bool:
        if not self._make_room(tokens - source.region.tokens, keep=source):
            return False
        if not self.backend.resize(source.region, tokens):
            return False
        self.parked.remove(source)
        return True

    def _allocate(self, tokens: int, *, keep: Kept | None) -> Region | None:
        if not self._make_room(tokens, keep=keep):
            return None
        while (region := self.backend.allocate(tokens)) is None:
            # Enough is free, but not in one piece.
            if not self._drop_oldest(keep):
                return None
        return region

    def _make_room(self, tokens: int, *, keep: Kept | None) -> bool:
        while self.running_tokens + self.parked_tokens + tokens > self.backend.total_tokens:
            if not self._drop_oldest(keep):
                return False
        return True

    def _drop_oldest(self, keep: Kept | None) -> bool:
        oldest = next((kept for kept in self.parked if kept is not keep), None)
        if oldest is None:
            return False
        self._drop(oldest)
        return True

    def _drop(self, kept: Kept) -> None:
        self.parked.remove(kept)
        self.backend.release(kept.region)


def _virtual(sequence: Sequence) -> np.ndarray:
    return np.concatenate((sequence.virtual, np.array(sequence.generated, dtype=np.int64)))


def _most_reused(sequence: Sequence, prompt: Prompt) -> int:
    """How much of a prompt may come out of a kept chat; what is watched must be computed."""
    most = len(prompt.ids) - 1
    return most if sequence.watch is None else min(most, sequence.watch.begins(prompt))


def _covers(longer: Kept, other: Kept) -> bool:
    """Whether a kept chat is no more than the beginning of another of the same owner."""
    return (
        longer.owner == other.owner
        and other.computed <= longer.computed
        and common_prefix(longer.virtual[: longer.computed], other.virtual[: other.computed]) == other.computed
    )
