"""Leaderboards and points, computed once for all who look, until there is another vote."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from serve.arena.board import Choice, board, points_of
from serve.arena.ledger import Ledger
from serve.store.battles import VotedBattle

T = TypeVar("T")
Move = tuple[float | None, float | None]
"""A model's points before and after a vote, None while unrated."""
_REMEMBERED = 32
"""Results: people choose other days and categories."""


class Standings:
    """Its methods belong to one event loop; what takes long runs in a thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._computed: OrderedDict[Hashable, asyncio.Task[Any]] = OrderedDict()

    async def board(self, choice: Choice, offered: Iterable[str]) -> dict[str, Any]:
        """As `board` makes it; the same object for all, so not to be changed."""
        battles, on_offer = await self._ledger.battles(), tuple(sorted(offered))
        return await self._once(battles, partial(board, battles, choice, on_offer), choice, on_offer)

    async def moves(self, voted: VotedBattle) -> tuple[Move, ...]:
        """What the vote does to the points of its models."""
        known = [battle for battle in await self._ledger.battles() if battle.id != voted.id]
        before, after = await self._points(known), await self._points([*known, voted])
        return tuple((before.get(model), after.get(model)) for model in voted.models)

    async def _points(self, battles: Sequence[VotedBattle]) -> dict[str, float]:
        return await self._once(battles, partial(points_of, battles), "points")

    async def _once(self, battles: Sequence[VotedBattle], compute: Callable[[], T], *what: Hashable) -> T:
        """Battles are only ever added, so their number and the last one tell whether there are others."""
        key = (len(battles), battles[-1].id if battles else "", *what)
        if key not in self._computed:
            self._computed[key] = task = asyncio.create_task(asyncio.to_thread(compute))
            task.add_done_callback(lambda done: self._forget_failed(key, done))
            if len(self._computed) > _REMEMBERED:
                self._computed.popitem(last=False)
        self._computed.move_to_end(key)
        return await asyncio.shield(self._computed[key])

    def _forget_failed(self, key: Hashable, done: asyncio.Task[Any]) -> None:
        if done.cancelled() or done.exception():
            self._computed.pop(key, None)
