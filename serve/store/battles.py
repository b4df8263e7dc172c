"""Battles in the store: a battle between two models with the vote about it, and ratings as they once were.

Every function works in the transaction it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal, Protocol

from sqlalchemy import Connection, insert, select, update

from serve.ratings import Rating
from serve.store.conversations import save
from serve.store.database import upsert
from serve.store.messages import clean
from serve.store.records import Generation, KeptChat, KeptMessage
from serve.store.tables import BATTLE_SLOTS, BATTLES, MESSAGES, RATING_SNAPSHOTS, RATINGS, VOTES

Verdict = Literal["a", "b", "tie", "both_bad"]
Conversation = tuple[tuple[str, str], ...]
"""Questions with their answers."""
OWNER = "arena"
"""Recorded conversations belong to no browser: whoever asked finds them in no list."""
NOBODY = ""
"""Has the votes whose voter deleted what they wrote, and those that are too old to be anybody's."""


@dataclass(frozen=True)
class Style:
    """How the answers of one side were written: words, and marks of Markdown."""

    words: int = 0
    headers: int = 0
    lists: int = 0
    bold: int = 0


@dataclass(frozen=True)
class VotedBattle:
    """A battle and the live vote about it. `owner` is the hash of a browser's secret."""

    id: str
    owner: str
    models: tuple[str, str]
    verdict: Verdict
    voted_at: datetime
    reason: str = ""
    categories: tuple[str, ...] = ()
    left_out: str = ""
    blind: bool = True
    turns: int = 1
    styles: tuple[Style, Style] = (Style(), Style())
    language: str = ""
    """Of what was asked, by its English name; empty where it is not known."""
    conversations: tuple[Conversation, Conversation] | None = None
    """Written where the operator records; never read back with the rest."""

    @property
    def place(self) -> str:
        return "arena"

    def as_nobodys(self) -> VotedBattle:
        """Its outcome alone, as ratings need it."""
        return replace(self, owner=NOBODY, reason="", conversations=None)


class RecordedBattle(Protocol):
    """What `keep_conversation` needs of a battle of any number of slots."""

    @property
    def id(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def conversations(self) -> tuple[Conversation, ...] | None: ...
    @property
    def voted_at(self) -> datetime: ...


def save_battle(connection: Connection, battle: VotedBattle) -> None:
    """Write the battle and its vote; a vote of the same person that was there is replaced. Twice is as once."""
    upsert(
        connection,
        BATTLES,
        [
            {
                "id": battle.id,
                "owner": battle.owner,
                "place": battle.place,
                "category": ",".join(battle.categories),
                "blind": battle.blind,
                "left_out": clean(battle.left_out)[:60] or None,
                "created_at": battle.voted_at,
                "turns": battle.turns,
                "language": battle.language or None,
            }
        ],
    )
    slots = [
        {
            "battle_id": battle.id,
            "slot": slot,
            "model": battle.models[slot],
            "style": asdict(battle.styles[slot]),
            "conversation_id": keep_conversation(connection, battle, slot),
        }
        for slot in (0, 1)
    ]
    upsert(connection, BATTLE_SLOTS, slots)
    winner = {"a": 0, "b": 1}.get(battle.verdict)
    verdict = battle.verdict if winner is None else "slot"
    cast_vote(connection, battle.id, battle.owner, verdict, winner, battle.reason, battle.voted_at)


def cast_vote(
    connection: Connection, battle: str, owner: str, verdict: str, winner: int | None, reason: str, at: datetime
) -> None:
    """The live vote of this person in this battle; one that was there no longer counts. Twice is as once."""
    row = {"verdict": verdict, "winner": winner, "reason": clean(reason) or None}
    # Nobody's was this person's once: nobody else votes in their battle.
    its = (VOTES.c.battle_id == battle, VOTES.c.owner.in_((owner, NOBODY)), VOTES.c.replaced_at.is_(None))
    live = connection.execute(select(VOTES.c.verdict, VOTES.c.winner, VOTES.c.reason).where(*its)).one_or_none()
    if live and dict(live._mapping) == row:
        return
    connection.execute(update(VOTES).where(*its).values(replaced_at=at))
    connection.execute(insert(VOTES).values(battle_id=battle, owner=owner, created_at=at, **row))


def read_battles(connection: Connection) -> tuple[VotedBattle, ...]:
    """All battles of the arena with their live votes, the earliest first."""
    one, two = BATTLE_SLOTS.alias("one"), BATTLE_SLOTS.alias("two")
    rows = connection.execute(
        select(
            BATTLES.c.id, VOTES.c.owner, one.c.model, two.c.model, VOTES.c.verdict, VOTES.c.winner, VOTES.c.created_at,
            VOTES.c.reason, BATTLES.c.category, BATTLES.c.left_out, BATTLES.c.blind, BATTLES.c.turns, one.c.style,
            two.c.style, BATTLES.c.language,
        )
        .join(VOTES, (VOTES.c.battle_id == BATTLES.c.id) & VOTES.c.replaced_at.is_(None))
        .join(one, (one.c.battle_id == BATTLES.c.id) & (one.c.slot == 0))
        .join(two, (two.c.battle_id == BATTLES.c.id) & (two.c.slot == 1))
        .where(BATTLES.c.place == "arena")
        .order_by(VOTES.c.created_at, VOTES.c.id)
    )  # fmt: skip
    return tuple(_battle(*row) for row in rows)


def read_conversations(connection: Connection) -> dict[str, tuple[Conversation, Conversation]]:
    """Those that were recorded, by battle."""
    rows = connection.execute(
        select(BATTLE_SLOTS.c.battle_id, BATTLE_SLOTS.c.slot, MESSAGES.c.key, MESSAGES.c.text)
        .join(MESSAGES, MESSAGES.c.conversation_id == BATTLE_SLOTS.c.conversation_id)
        .join(BATTLES, BATTLES.c.id == BATTLE_SLOTS.c.battle_id)
        .where(BATTLES.c.place == "arena")
    )
    found: dict[str, tuple[dict[int, str], dict[int, str]]] = {}
    for battle, slot, key, text in rows:
        if slot in (0, 1):
            found.setdefault(battle, ({}, {}))[slot][int(key[1:])] = text
    return {battle: (_paired(sides[0]), _paired(sides[1])) for battle, sides in found.items() if all(sides)}


def save_snapshot(
    connection: Connection, rated: Sequence[Rating], parameters: Mapping[str, Any], votes: int, now: datetime
) -> None:
    """Keep ratings as they are now."""
    made = connection.execute(
        insert(RATING_SNAPSHOTS).values(
            method="bradley-terry", parameters=dict(parameters), votes=votes, created_at=now
        )
    )
    [snapshot] = made.inserted_primary_key or (None,)
    rows = [
        {
            "snapshot_id": snapshot,
            "model": rating.model,
            "rating": float(rating.points),
            "low": float(rating.low),
            "high": float(rating.high),
            "votes": rating.battles,
        }
        for rating in rated
    ]
    if rows:
        connection.execute(insert(RATINGS), rows)


def _battle(
    id: str, owner: str, a: str, b: str, verdict: str, winner: int | None, voted_at: datetime, reason: str | None,
    category: str | None, left_out: str | None, blind: bool, turns: int | None, one: Any, two: Any,
    language: str | None,
) -> VotedBattle:  # fmt: skip
    told: Verdict = ("a", "b")[winner] if winner in (0, 1) else "tie" if verdict == "tie" else "both_bad"
    categories = tuple((category or "").split(",")) if category else ()
    styles = (Style(**(one or {})), Style(**(two or {})))
    return VotedBattle(
        id,
        owner,
        (a, b),
        told,
        voted_at,
        reason or "",
        categories,
        left_out or "",
        blind,
        turns or 1,
        styles,
        language or "",
    )


def keep_conversation(connection: Connection, battle: RecordedBattle, slot: int) -> str | None:
    """What was said in this slot as a conversation of nobody's, where it is recorded; its id."""
    if battle.conversations is None:
        return None
    messages: list[KeptMessage] = []
    for number, (question, answer) in enumerate(battle.conversations[slot]):
        parent = messages[-1].key if messages else None
        asked = KeptMessage(f"t{2 * number + 1}", parent, "user", 0, True, question)
        made = Generation(battle.models[slot], "done")
        messages += [asked, KeptMessage(f"a{2 * number + 2}", asked.key, "assistant", 0, True, answer, generation=made)]
    id = f"{battle.id}-{slot}"
    chat = KeptChat(id, OWNER, "A battle", battle.place, "", len(messages), tuple(messages))
    save(connection, chat, None, battle.voted_at)
    return id


def _paired(texts: Mapping[int, str]) -> Conversation:
    ordered = [texts[key] for key in sorted(texts)]
    return tuple(zip(ordered[::2], ordered[1::2], strict=False))
