"""All votes of the arena: written to the store where there is one, counted in memory where there is none.

A vote counts at once. One that could not be written waits here, and is written when the database is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from llava_core.config import ArenaLimits
from serve.arena.pairing import Pair
from serve.ratings import Rating
from serve.store.battles import Conversation, VotedBattle, read_battles, read_conversations, save_battle, save_snapshot
from serve.store.keeper import Keeper, StoreTrouble

log = logging.getLogger(__name__)
T = TypeVar("T")


class Ledger:
    """Its methods belong to one event loop. `keeper` None keeps votes in memory only."""

    def __init__(self, keeper: Keeper | None, limits: ArenaLimits | None = None) -> None:
        self._keeper = keeper
        self._limits = limits or ArenaLimits()
        self._known: OrderedDict[str, VotedBattle] = OrderedDict()
        self._unwritten: OrderedDict[str, VotedBattle] = OrderedDict()
        self._refused: set[str] = set()  # of those, which the database would not take at the first try
        self._read_at: float | None = None
        self._reading = asyncio.Lock()
        self._writing: set[asyncio.Task[None]] = set()
        self._snapshots: dict[str, tuple[float, int]] = {}

    @property
    def is_kept(self) -> bool:
        return self._keeper is not None

    @property
    def trouble(self) -> str:
        """What people should know about the keeping of votes; empty while all is well."""
        if self._keeper is None:
            return "Votes are counted in this server's memory and are gone when it restarts."
        count = len(self._refused & self._unwritten.keys())
        if not count and not self._keeper.state.trouble:
            return ""
        reason = self._keeper.state.trouble or "this server's database is busy"
        waiting = f" {count} {'vote waits' if count == 1 else 'votes wait'} to be written." if count else ""
        return f"Votes count but are not kept at the moment: {reason}.{waiting}"

    def add(self, battle: VotedBattle) -> None:
        """The battle counts from now on, in place of what was voted in it before."""
        self._known[battle.id] = battle
        while len(self._known) > self._limits.max_battles:
            self._known.popitem(last=False)
        if self._keeper is None:
            return
        self._unwritten[battle.id] = battle
        while len(self._unwritten) > self._limits.max_unwritten:
            self._refused.discard(self._unwritten.popitem(last=False)[0])
        self._start(self._write(battle))

    def forget(self, owner: str) -> None:
        """This voter's battles are nobody's from now on; the database's own are made so in the transaction that deletes
        the voter's chats. A vote that still waits to be written would bring the voter back, and goes."""
        for id in [id for id, battle in self._unwritten.items() if battle.owner == owner]:
            del self._unwritten[id]
        self._known.update({id: battle.as_nobodys() for id, battle in self._known.items() if battle.owner == owner})

    async def battles(self) -> tuple[VotedBattle, ...]:
        """All of them, as read a few seconds ago at most, with everything that was voted here since."""
        await self._refresh()
        return tuple(self._known.values())

    async def met(self) -> Counter[Pair]:
        """Votes per pair."""
        return Counter(frozenset(battle.models) for battle in await self.battles())

    async def conversations(self) -> dict[str, tuple[Conversation, Conversation]]:
        """Those that were recorded, by battle."""
        kept: dict[str, tuple[Conversation, Conversation]] = {}
        if self._keeper:
            kept = await self._read(read_conversations) or {}
        return kept | {battle.id: battle.conversations for battle in self._known.values() if battle.conversations}

    def note_ratings(self, rated: Sequence[Rating], parameters: dict[str, Any], votes: int) -> None:
        """Keep these ratings as they are now, unless there are no new votes or the last were kept just before."""
        if self._keeper is None or not rated:
            return
        now, key = asyncio.get_running_loop().time(), repr(sorted(parameters.items()))
        at, counted = self._snapshots.get(key, (-self._limits.snapshot_s, -1))
        if counted == votes or now - at < self._limits.snapshot_s:
            return
        self._snapshots[key] = (now, votes)
        job = partial(_snapshot, rated=rated, parameters=parameters, votes=votes)
        self._start(self._note(job))

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self, battle: VotedBattle) -> None:
        """Until it is written or something newer of the same battle is to be."""
        keeper = self._keeper
        while keeper and self._unwritten.get(battle.id) is battle:
            try:
                async with asyncio.timeout(self._limits.write_s):
                    await asyncio.wrap_future(keeper.do(lambda connection: save_battle(connection, battle)))
            except (StoreTrouble, TimeoutError):
                self._refused.add(battle.id)
                await asyncio.sleep(self._limits.retry_s)
                continue
            except Exception:
                log.exception("a vote cannot be kept")
            if self._unwritten.get(battle.id) is battle:
                del self._unwritten[battle.id]
                self._refused.discard(battle.id)
                # What is recorded need not be held here too.
                if self._known.get(battle.id) is battle:
                    self._known[battle.id] = replace(battle, conversations=None)

    async def _note(self, job: Callable[[Connection], None]) -> None:
        try:
            async with asyncio.timeout(self._limits.write_s):
                if self._keeper:
                    await asyncio.wrap_future(self._keeper.do(job))
        except (StoreTrouble, TimeoutError):
            log.warning("ratings of this moment were not kept, the database cannot be used")

    async def _refresh(self) -> None:
        async with self._reading:
            now = asyncio.get_running_loop().time()
            if self._keeper is None or (self._read_at is not None and now - self._read_at < self._limits.fresh_s):
                return
            before = dict(self._known)
            found = await self._read(read_battles)
            if found is None:
                return
            added = {id: battle for id, battle in self._known.items() if before.get(id) is not battle}
            self._known = OrderedDict({battle.id: battle for battle in found} | dict(self._unwritten) | added)
            self._read_at = now

    async def _read(self, job: Callable[[Connection], T]) -> T | None:
        """None while the database cannot be read."""
        try:
            async with asyncio.timeout(self._limits.read_s):
                return await asyncio.to_thread(self._keeper.read, job) if self._keeper else None
        except (StoreTrouble, TimeoutError):
            return None


def _snapshot(connection: Connection, rated: Sequence[Rating], parameters: dict[str, Any], votes: int) -> None:
    save_snapshot(connection, rated, parameters, votes, datetime.now(UTC))
