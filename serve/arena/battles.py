"""Blind battles: behind a secret of the browser two models, a chat with each, and one vote that reveals their names.

The two rooms of a battle are called by its secret with `-left` and `-right` after it. Until the vote nothing that goes
to the browser tells which models they are: neither names nor figures, which would betray the larger one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from random import Random, SystemRandom
from typing import Any, cast

from llava_core.config import ArenaLimits
from llava_core.errors import BadRequest, Unauthorized
from serve.arena import facts
from serve.arena.blind_rooms import BlindRooms, masked
from serve.arena.language import language_of
from serve.arena.leaks import find_leak_in
from serve.arena.ledger import Ledger
from serve.arena.pairing import choose
from serve.arena.standings import Move, Standings
from serve.page.history import owner_of
from serve.page.messages import Message, read_owner
from serve.page.models import ModelList
from serve.page.room import Place
from serve.page.session import Chat
from serve.store.battles import Verdict, VotedBattle

SIDES = ("left", "right")
LABELS = ("Model A", "Model B")
_STAYS = "how you voted stays in the ratings, as nobody's vote."
_VERDICTS = ("a", "b", "tie", "both_bad")
_ASKING = ("ask", "edit", "retry", "resume")
_ELSEWHERE = ("join", "copy", "part")


@dataclass
class _Battle:
    """Two models, left and right. `leak` is why it does not count, where an answer that was taken back told its
    model."""

    owner: str
    models: tuple[str, str]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    leak: str = ""
    vote: VotedBattle | None = None
    moves: tuple[Move, ...] = ()
    voting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def shown(self) -> dict[str, Any]:
        """What the browser may know of it."""
        if self.vote is None:
            return {"voted": ""}
        return {
            "voted": self.vote.verdict,
            "reason": self.vote.reason,
            "left_out": self.vote.left_out,
            "models": [
                {"label": label, "name": name, "before": before, "after": after}
                for label, name, (before, after) in zip(LABELS, self.models, self.moves, strict=True)
            ],
        }


class Arena:
    """Its methods belong to one event loop."""

    def __init__(
        self,
        rooms: BlindRooms,
        models: ModelList,
        ledger: Ledger,
        *,
        recording: bool = False,
        end: str = "when you delete all your chats",
        limits: ArenaLimits | None = None,
        random: Random | None = None,
    ) -> None:
        """`recording` keeps what was said with each vote; `end` says when what people wrote is deleted."""
        self.rooms = rooms
        self.ledger = ledger
        self.standings = Standings(ledger)
        self.recording = recording
        self._end = end
        self._models = models
        self._limits = limits or ArenaLimits()
        self._random = random or SystemRandom()
        self._battles: OrderedDict[str, _Battle] = OrderedDict()
        self._changing = asyncio.Lock()

    @property
    def promise(self) -> str:
        """What the page says about what is kept."""
        kept = "on this server" if self.ledger.is_kept else "in this server's memory until it restarts"
        if self.recording:
            return (
                f"Votes are kept {kept} with the whole conversation, without its pictures, for whoever runs it; the "
                f"Leaderboard's downloads leave it out. The conversation and your reason go {self._end}; {_STAYS}"
            )
        return (
            f"Votes are kept {kept} with the models' names, your reason, the language you ask in and the "
            "length of the answers, but not what you ask nor what is answered. "
            f"Your reason goes {self._end}; {_STAYS}"
        )

    async def tell(self, message: Message, place: Place = nullcontext) -> dict[str, Any]:
        """As `Rooms.tell`, with the hidden model in place of whichever the message names."""
        addressed, secret, side = await self._addressed(message)
        view = await self.rooms.tell(addressed, place)
        battle = self._battles.get(secret)
        if message.get("do") == "undo" and battle and not battle.leak:
            battle.leak = await self._leak(battle, [self.rooms.chat_of(str(message["room"]), battle.owner)])
        return self._blind(view, secret, side)

    async def follow(self, message: Message, reader: str) -> AsyncIterator[dict[str, Any]]:
        addressed, secret, side = await self._addressed({**message, "do": ""})
        async with aclosing(cast("Any", self.rooms.follow(addressed, reader))) as views:
            async for view in views:
                yield self._blind(view, secret, side) if "turns" in view else view

    def leave(self, reader: str) -> None:
        self.rooms.leave(reader)

    async def export(self, message: Message) -> str:
        secret, _ = _parts(message)
        battle = self._of(secret, _owner(message, secret))
        if battle is None or battle.vote is None:
            raise BadRequest("a file would tell the models' names; vote first")
        # The one battle that was voted on, whatever others the message names.
        return await self.rooms.export({name: value for name, value in message.items() if name != "rooms"})

    async def vote(self, message: Message) -> dict[str, Any]:
        """Count the vote and tell the names. The same vote again may add a reason. Raises BadRequest otherwise."""
        secret, _ = _parts(message)
        owner = _owner(message, secret)
        verdict, reason = str(message.get("verdict")), " ".join(str(message.get("reason") or "").split())
        if verdict not in _VERDICTS:
            raise BadRequest("a vote is a, b, tie or both_bad", param="verdict")
        reason = reason[: self._limits.max_reason]
        battle = self._of(secret, owner)
        if battle is None:
            raise BadRequest("there is no battle here yet; ask both models something first")
        async with battle.voting:
            if self._of(secret, owner) is not battle:
                raise BadRequest("this battle is no longer there; begin a new one")
            if battle.vote and battle.vote.verdict != verdict:
                raise BadRequest("the names are known, so this battle takes no other vote; begin a new one")
            if battle.vote is None:
                await self._count(battle, secret, cast("Verdict", verdict), reason)
            elif reason and reason != battle.vote.reason:
                battle.vote = replace(battle.vote, reason=reason)
                self.ledger.add(battle.vote)
        return battle.shown()

    async def forget(self, owner: str) -> None:
        """What this browser said goes; how its votes fell stays, as nobody's."""
        await self.rooms.drop(owner)
        for secret, battle in [(secret, battle) for secret, battle in self._battles.items() if battle.owner == owner]:
            async with battle.voting:
                self._battles.pop(secret, None)
        self.ledger.forget(owner)

    async def _count(self, battle: _Battle, secret: str, verdict: Verdict, reason: str) -> None:
        chats = tuple(self.rooms.chat_of(f"{secret}-{side}", battle.owner) for side in SIDES)
        left, right = chats
        if not all(facts.is_complete(chat) for chat in chats):
            raise BadRequest("a vote needs both answers, complete and not empty; wait for them or ask again")
        if facts.questions_of(left) != facts.questions_of(right):
            raise BadRequest("the two models were not asked the same; show the same wording on both sides")
        voted = VotedBattle(
            id=battle.id,
            owner=battle.owner,
            models=battle.models,
            verdict=verdict,
            voted_at=datetime.now(UTC),
            reason=reason,
            categories=facts.categories_of(left, self._limits.long_question),
            left_out=battle.leak or await self._leak(battle, chats),
            turns=len(left.turns),
            styles=(facts.style_of(left), facts.style_of(right)),
            language=language_of("\n".join(turn.text for turn in left.turns)),
            conversations=(facts.conversation_of(left), facts.conversation_of(right)) if self.recording else None,
        )
        battle.moves = await self.standings.moves(voted)
        battle.vote = voted
        self.ledger.add(voted)

    async def _leak(self, battle: _Battle, chats: Iterable[Chat]) -> str:
        """Why this battle does not count, if an answer told its model."""
        offer = await self._models.offer()
        served = {card.info.name for card in offer.cards} | set(battle.models)
        found = next(filter(None, (find_leak_in(chat, served) for chat in chats)), "")
        return f"an answer said {found[:36]!r}" if found else ""

    async def _addressed(self, message: Message) -> tuple[dict[str, Any], str, int]:
        """The message with the model it goes to, the battle's secret, the side."""
        secret, side = _parts(message)
        owner = _owner(message, secret)
        addressed = {**message, "model": "", "place": "arena"}
        if message.get("do") == "rate":
            raise BadRequest("in the arena the vote is the rating")
        if message.get("do") in _ELSEWHERE:
            raise BadRequest("a blind battle takes nothing over from another chat; begin a new one")
        if message.get("do") in _ASKING:
            pictures = bool(message.get("pictures"))
            async with self._changing:
                battle = self._of(secret, owner) or await self._begin(secret, owner, pictures)
            if pictures:
                await self._check_takes_pictures(battle)
            addressed["model"] = battle.models[side]
        if not message.get("owner"):
            addressed["owner"] = secret
        return addressed, secret, side

    async def _check_takes_pictures(self, battle: _Battle) -> None:
        """A follow-up may bring the first picture; both models are asked it or neither."""
        cards = (await self._models.offer()).cards
        if any(card.info.name in battle.models and not card.info.accepts_images for card in cards):
            raise BadRequest("a model of this battle takes no pictures; ask without, or begin a new battle with it")

    async def _begin(self, secret: str, owner: str, pictures: bool) -> _Battle:
        """A battle of two models on offer."""
        offered = [card.info for card in (await self._models.offer()).cards]
        battle = _Battle(owner, choose(offered, pictures, await self.ledger.met(), self._random))
        self._battles[secret] = battle
        while len(self._battles) > self._limits.max_open:
            self._battles.popitem(last=False)
        return battle

    def _of(self, secret: str, owner: str) -> _Battle | None:
        battle = self._battles.get(secret)
        if battle is None:
            return None
        if battle.owner != owner:
            raise Unauthorized("this battle belongs to another browser", param="room")
        self._battles.move_to_end(secret)
        return battle

    def _blind(self, view: dict[str, Any], secret: str, side: int) -> dict[str, Any]:
        battle = self._battles.get(secret)
        if battle is None:  # forgotten, or never begun: then there is nobody whose name could be told
            return {**masked(view, {}, LABELS[side]), "battle": {"voted": ""}}
        if battle.vote is None:
            hidden = dict(zip(battle.models, LABELS, strict=True))
            view = masked(view, hidden, LABELS[side])
        return {**view, "battle": battle.shown()}


def _parts(message: Message) -> tuple[str, int]:
    """The battle's secret and the side that the message is about."""
    secret, _, side = str(message.get("room") or "").rpartition("-")
    if side not in SIDES or len(secret) < 20:
        raise BadRequest("this page lost track of its battle; reload it", param="room")
    return secret, SIDES.index(side)


def _owner(message: Message, secret: str) -> str:
    return read_owner(message) or owner_of(secret)
