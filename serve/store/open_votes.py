"""Open comparisons in the store: two or more models whose names were known, and a person's live vote about them.

They stand in the tables of the battles, marked as not blind, and no rating counts them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, select, update

from serve.store.battles import Conversation, Style, cast_vote, keep_conversation
from serve.store.database import upsert
from serve.store.tables import BATTLE_SLOTS, BATTLES, VOTES

PLACE = "compare"

OpenVerdict = Literal["slot", "tie", "both_bad"]
"""The answer in one slot is best, they are equal, or all of them are bad."""


@dataclass(frozen=True)
class OpenVote:
    """A comparison and the live vote about it. `owner` is the hash of a browser's secret."""

    id: str
    owner: str
    models: tuple[str, ...]
    verdict: OpenVerdict
    winner: int | None
    voted_at: datetime
    reason: str = ""
    categories: tuple[str, ...] = ()
    turns: int = 1
    styles: tuple[Style, ...] = ()
    conversations: tuple[Conversation, ...] | None = None

    @property
    def place(self) -> str:
        return PLACE


def save_open_vote(connection: Connection, vote: OpenVote) -> None:
    """Write the comparison and its vote; a vote of the same person that was there is replaced."""
    row = {
        "id": vote.id,
        "owner": vote.owner,
        "place": PLACE,
        "category": ",".join(vote.categories),
        "blind": False,
        "left_out": None,
        "created_at": vote.voted_at,
        "turns": vote.turns,
    }
    upsert(connection, BATTLES, [row])
    slots = [
        {
            "battle_id": vote.id,
            "slot": slot,
            "model": model,
            "style": asdict(vote.styles[slot]) if vote.styles else None,
            "conversation_id": keep_conversation(connection, vote, slot),
        }
        for slot, model in enumerate(vote.models)
    ]
    upsert(connection, BATTLE_SLOTS, slots)
    cast_vote(connection, vote.id, vote.owner, vote.verdict, vote.winner, vote.reason, vote.voted_at)


def read_open_vote(connection: Connection, id: str, owner: str) -> tuple[OpenVerdict, int | None, str] | None:
    """Verdict, winner and reason of the live vote, if there is one."""
    its = (VOTES.c.battle_id == id, VOTES.c.owner == owner, VOTES.c.replaced_at.is_(None))
    row = connection.execute(select(VOTES.c.verdict, VOTES.c.winner, VOTES.c.reason).where(*its)).one_or_none()
    return None if row is None else (row[0], row[1], row[2] or "")


def withdraw_open_vote(connection: Connection, id: str, owner: str, now: datetime) -> None:
    its = (VOTES.c.battle_id == id, VOTES.c.owner == owner, VOTES.c.replaced_at.is_(None))
    connection.execute(update(VOTES).where(*its).values(replaced_at=now))
