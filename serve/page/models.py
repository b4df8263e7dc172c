"""The models on offer, as the controller last told: asked at most once a second however many pages look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llava_core.errors import LlavaError
from serve.page.source import AnswerSource, Card

ListMode = Literal["once", "reload"]


@dataclass(frozen=True)
class Offer:
    """What the picker shows. `trouble` says why the list may be stale or empty."""

    cards: tuple[Card, ...] = ()
    trouble: str = ""


class ModelList:
    """`reload` follows the controller; `once` keeps the first list that had a model in it."""

    def __init__(
        self,
        source: AnswerSource,
        mode: ListMode = "reload",
        fresh_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._mode = mode
        self._fresh_s = fresh_s
        self._clock = clock
        self._offer = Offer()
        self._asked_at: float | None = None
        self._lock = asyncio.Lock()

    async def offer(self) -> Offer:
        async with self._lock:
            if not self._is_fresh():
                self._offer = await self._ask()
                self._asked_at = self._clock()
            return self._offer

    def _is_fresh(self) -> bool:
        if self._mode == "once" and self._offer.cards:
            return True
        return self._asked_at is not None and self._clock() - self._asked_at < self._fresh_s

    async def _ask(self) -> Offer:
        try:
            return Offer(tuple(sorted(await self._source.models(), key=lambda card: card.info.name)))
        except LlavaError as error:
            return Offer(self._offer.cards, error.message)
