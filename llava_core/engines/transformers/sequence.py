"""One request on its way through the engine: its ids, how far they are computed, and what it holds."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from llava_core.types import Phases, Request, Usage

if TYPE_CHECKING:
    from llava_core.checkpoints.base import Prompt
    from llava_core.engines.transformers.attention import Region
    from llava_core.engines.transformers.detokenize import Detokenizer
    from llava_core.engines.transformers.sampler import Draw
    from llava_core.engines.transformers.speculate import Lookup
    from llava_core.engines.transformers.watch import Watch


@dataclass(eq=False)
class Sequence:
    """Mutable, and after `submit` touched by the model thread only, except for `cancelled`."""

    request: Request
    prompt: Prompt
    max_new: int
    draw: Draw
    detokenizer: Detokenizer
    positions: torch.Tensor | None = None
    """`(3, prompt)` for families whose rotary positions are no plain count."""
    owner: str = ""
    begun: tuple[int, ...] = ()
    """Generated ids that another engine drew; they are computed with the prompt and count as the answer's."""
    arrived: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first: float | None = None
    """When it left the queue, and when its first own token was there."""
    cancelled: bool = False

    ids: list[int] = field(default_factory=list[int])
    """The prompt's ids, then the generated ones."""
    computed: int = 0
    """How many of `ids` have their keys and values in `region`."""
    cached: int = 0
    region: Region | None = None
    features: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    """Features of the pictures that still have rows to prefill."""
    lookup: Lookup | None = None
    """Guesses its next tokens, where that is allowed."""
    told: int = 0
    """How many generated ids went out in chunks."""
    watch: Watch | None = None
    """Takes note of where its tokens look."""

    def __post_init__(self) -> None:
        self.told = len(self.begun)
        self.take_prompt(self.prompt, self.positions)

    def take_prompt(self, prompt: Prompt, positions: torch.Tensor | None) -> None:
        """Start from this prompt; allowed until something is computed."""
        self.prompt = prompt
        self.positions = positions
        self.ids = [*prompt.ids, *self.begun]
        self.virtual = virtual_prompt(prompt)
        self._next_position = len(prompt.ids) if positions is None else int(positions.max()) + 1

    @property
    def prompt_length(self) -> int:
        return len(self.prompt.ids)

    @property
    def generated(self) -> list[int]:
        return self.ids[self.prompt_length :]

    @property
    def produced(self) -> int:
        return len(self.ids) - self.prompt_length

    @property
    def remaining(self) -> int:
        """Ids that wait to be computed: one while decoding, more while prefilling."""
        return len(self.ids) - self.computed

    @property
    def decoding(self) -> bool:
        return self.computed >= self.prompt_length + len(self.begun)

    @property
    def reserve(self) -> int:
        """Tokens of memory that it may need in the end; the last generated one is never computed."""
        return self.prompt_length + self.max_new

    def untold(self) -> tuple[int, ...]:
        """The generated ids that the next chunk tells of."""
        first, self.told = self.prompt_length + self.told, self.produced
        return tuple(self.ids[first:])

    def ready(self) -> int:
        """How many waiting ids can be computed now: up to the first picture that is not encoded yet."""
        for placed in self.prompt.images:
            if placed.start + placed.image.tokens > self.computed and placed.image.key not in self.features:
                return max(0, placed.start - self.computed)
        return self.remaining

    def positions_of(self, start: int, count: int) -> torch.Tensor:
        """Position ids `(count,)`, or `(3, count)` where the family counts in three dimensions."""
        length = self.prompt_length
        if self.positions is None:
            return torch.arange(start, start + count)
        if start + count <= length:
            return self.positions[:, start : start + count]
        # Generated text goes on one by one after the largest position of the prompt, the same in all dimensions.
        first = self._next_position + max(start, length) - length
        tail = torch.arange(first, self._next_position + start + count - length).expand(3, -1)
        return torch.cat((self.positions[:, start:length], tail), dim=1)

    @property
    def decoding_position(self) -> int:
        """Position of the id that is computed next while decoding; the same in all dimensions."""
        return self._next_position + self.computed - self.prompt_length

    def phases(self) -> Phases:
        """With its last token there, now."""
        now = time.monotonic()
        return Phases(self.arrived, self.admitted or now, self.first or now, now)

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_length,
            completion_tokens=self.produced,
            image_tokens=sum(placed.image.tokens for placed in self.prompt.images),
            cached_tokens=self.cached,
        )


def virtual_prompt(prompt: Prompt) -> np.ndarray:
    """Ids that are equal exactly where keys and values are: token ids, and for picture rows what they show.

    Rows become negative numbers drawn from the picture's key, 62 bits wide, so that equal pictures meet and
    different ones do not.
    """
    virtual = np.array(prompt.ids, dtype=np.int64)
    for placed in prompt.images:
        digest = int.from_bytes(hashlib.blake2b(placed.image.key.encode(), digest_size=8).digest(), "little")
        rows = np.arange(placed.image.tokens)
        virtual[placed.start : placed.start + placed.image.tokens] = -1 - ((digest & ((1 << 62) - 1)) + rows)
    return virtual


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the longest common prefix."""
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    return int(different[0]) if len(different) else size
