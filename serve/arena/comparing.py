"""Votes about open comparisons: which of two or more answers is best, when everybody knows whose they are.

One live vote per person and row of answers; it may be changed and taken back. Ratings never count it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import Connection

from llava_core.config import ArenaLimits, CompareLimits
from llava_core.errors import BadRequest
from serve.arena import facts
from serve.page.actions import Rooms
from serve.page.history import HistoryTrouble
from serve.page.messages import Message, read_owner
from serve.page.session import Chat
from serve.store.keeper import Keeper, StoreTrouble
from serve.store.open_votes import OpenVerdict, OpenVote, read_open_vote, save_open_vote, withdraw_open_vote

T = TypeVar("T")
_VERDICTS: Mapping[str, OpenVerdict] = {"best": "slot", "tie": "tie", "all_bad": "both_bad"}
_TOLD = {told: verdict for verdict, told in _VERDICTS.items()}


@dataclass(frozen=True)
class _Field:
    """The columns that can be voted on: those whose last answer is complete. `places` are theirs on the page."""

    id: str
    owner: str
    chats: tuple[Chat, ...]
    places: tuple[int, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(chat.turns[-1].answer.model for chat in self.chats)


class OpenVotes:
    """Its methods belong to one event loop. `keeper` None keeps votes in memory only."""

    def __init__(
        self,
        rooms: Rooms,
        keeper: Keeper | None,
        *,
        recording: bool = False,
        end: str = "when you delete all your chats",
        limits: ArenaLimits | None = None,
    ) -> None:
        """`recording` keeps what was said with each vote; `end` says when votes are deleted."""
        self._rooms = rooms
        self._keeper = keeper
        self._recording = recording
        self._end = end
        self._limits = limits or ArenaLimits()
        self._in_memory: OrderedDict[str, OpenVote] = OrderedDict()

    @property
    def promise(self) -> str:
        """What the page says about what is kept."""
        if self._keeper is None:
            return f"Votes stay in this server's memory until it restarts, and go {self._end}."
        what = (
            "the whole conversation, without its pictures"
            if self._recording
            else "the models' names, your reason and the length of the answers"
        )
        return (
            f"Votes are kept on this server with {what}, as open ones: the Leaderboard does not count them. Press your "
            f"vote again to take it back; all your open votes go {self._end}."
        )

    async def vote(self, message: Message) -> dict[str, Any]:
        """Count the vote; `verdict` empty takes it back. Raises BadRequest where there is nothing to vote on."""
        field = await self._field(message)
        verdict, reason = str(message.get("verdict") or ""), " ".join(str(message.get("reason") or "").split())
        if not verdict:
            await self._withdraw(field)
            return _shown(field, None)
        if verdict not in _VERDICTS:
            raise BadRequest("a vote is best, tie or all_bad", param="verdict")
        if len(field.chats) < 2:
            raise BadRequest("a vote needs two answers, complete and not empty; wait for them or ask again")
        if len({facts.questions_of(chat) for chat in field.chats}) > 1:
            raise BadRequest("the models were not asked the same; show the same wording in all columns")
        winner: int | None = None
        if verdict == "best":
            if message.get("best") not in field.places:
                raise BadRequest("the best answer has to be one that is complete", param="best")
            winner = field.places.index(cast(int, message["best"]))
        made = OpenVote(
            id=field.id,
            owner=field.owner,
            models=field.models,
            verdict=_VERDICTS[verdict],
            winner=winner,
            voted_at=datetime.now(UTC),
            reason=reason[: self._limits.max_reason],
            categories=facts.categories_of(field.chats[0], self._limits.long_question),
            turns=len(field.chats[0].turns),
            styles=tuple(map(facts.style_of, field.chats)),
            conversations=tuple(map(facts.conversation_of, field.chats)) if self._recording else None,
        )
        if self._keeper is None:
            self._remember(made)
        else:
            await self._write(partial(save_open_vote, vote=made))
        return _shown(field, (made.verdict, made.winner, made.reason))

    async def standing(self, message: Message) -> dict[str, Any]:
        """The live vote about what stands in the columns now."""
        field = await self._field(message)
        if self._keeper is None:
            kept = self._in_memory.get(field.id)
            return _shown(field, (kept.verdict, kept.winner, kept.reason) if kept else None)
        keeper = self._keeper
        try:
            async with asyncio.timeout(self._limits.read_s):
                job = partial(read_open_vote, id=field.id, owner=field.owner)
                return _shown(field, await asyncio.to_thread(keeper.read, job))
        except (StoreTrouble, TimeoutError):
            return _shown(field, None)

    async def forget(self, owner: str) -> None:
        """This person's votes that stand in memory; those in the database go with their chats."""
        for id in [id for id, vote in self._in_memory.items() if vote.owner == owner]:
            del self._in_memory[id]

    async def _withdraw(self, field: _Field) -> None:
        self._in_memory.pop(field.id, None)
        if self._keeper:
            await self._write(partial(withdraw_open_vote, id=field.id, owner=field.owner, now=datetime.now(UTC)))

    async def _write(self, job: Callable[[Connection], None]) -> None:
        try:
            async with asyncio.timeout(self._limits.write_s):
                await asyncio.wrap_future(cast(Keeper, self._keeper).do(job))
        except StoreTrouble as trouble:
            raise HistoryTrouble(f"the vote could not be kept, {trouble}; vote again in a while") from None
        except TimeoutError:
            raise HistoryTrouble("the vote could not be kept, the database is busy; vote again in a while") from None

    def _remember(self, vote: OpenVote) -> None:
        self._in_memory[vote.id] = replace(vote, conversations=None)
        self._in_memory.move_to_end(vote.id)
        while len(self._in_memory) > self._limits.max_open:
            self._in_memory.popitem(last=False)

    async def _field(self, message: Message) -> _Field:
        owner, listed = read_owner(message), message.get("rooms")
        rooms = [str(room) for room in cast("list[Any]", listed)] if isinstance(listed, list) else []
        if not owner or not 1 < len(rooms) <= CompareLimits().columns or len(set(rooms)) < len(rooms):
            raise BadRequest("this page lost track of its columns; reload it", param="rooms")
        chats = [await self._rooms.look({**message, "room": room, "do": "look"}) for room in rooms]
        there = [place for place, chat in enumerate(chats) if facts.is_complete(chat)]
        complete = tuple(chats[place] for place in there)
        parts = [f"{rooms[place]} {_judged(chats[place])}" for place in there]
        id = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
        return _Field(f"open-{id}", owner, complete, tuple(there))


def _judged(chat: Chat) -> str:
    """Names the answer that a vote is about: after a follow-up or another answer it is another vote."""
    answer = chat.turns[-1].answer
    return f"{answer.model} {answer.id}"


def _shown(field: _Field, kept: tuple[OpenVerdict, int | None, str] | None) -> dict[str, Any]:
    """`best` is the place of the column on the page."""
    if kept is None:
        return {"verdict": "", "best": None, "reason": ""}
    verdict, winner, reason = kept
    best = field.places[winner] if winner is not None and winner < len(field.places) else None
    return {"verdict": _TOLD[verdict], "best": best, "reason": reason}
