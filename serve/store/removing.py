"""What goes from the store when a person deletes all they wrote, or when it was kept long enough.

Chats go with their pictures, open votes with their reasons. Of a vote in the arena the outcome stays, since ratings are
made of it: nobody's from then on, without its reason and without what was said.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, delete, select, update

from serve.store import conversations
from serve.store.battles import NOBODY
from serve.store.open_votes import PLACE
from serve.store.tables import BATTLE_SLOTS, BATTLES, CONVERSATIONS, VOTES


def remove_all(connection: Connection, owner: str) -> tuple[str, ...]:
    """Everything that the owner wrote; the ids of the chats there were."""
    _clear_votes(connection, BATTLES.c.owner == owner)
    return conversations.remove_all(connection, owner)


def remove_older(connection: Connection, than: datetime) -> int:
    """Everything that was last changed before this moment; how many chats those were."""
    _clear_votes(connection, BATTLES.c.created_at < than)
    return conversations.remove_older(connection, than)


def _clear_votes(connection: Connection, which: ColumnElement[bool]) -> None:
    which = which & (BATTLES.c.owner != NOBODY)  # the others were cleared before
    its = select(BATTLES.c.id).where(which)
    said = select(BATTLE_SLOTS.c.conversation_id).where(BATTLE_SLOTS.c.battle_id.in_(its))
    connection.execute(delete(CONVERSATIONS).where(CONVERSATIONS.c.id.in_(said)))
    open_ones = its.where(BATTLES.c.place == PLACE)
    replaced = VOTES.c.replaced_at.is_not(None)
    connection.execute(delete(VOTES).where(VOTES.c.battle_id.in_(its) & (replaced | VOTES.c.battle_id.in_(open_ones))))
    connection.execute(delete(BATTLES).where(which, BATTLES.c.place == PLACE))
    connection.execute(update(VOTES).where(VOTES.c.battle_id.in_(its)).values(owner=NOBODY, reason=None))
    connection.execute(update(BATTLES).where(which).values(owner=NOBODY))
