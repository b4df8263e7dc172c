"""Who deletes what they wrote, or wrote it long ago, leaves the outcome of their blind votes and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from serve.store.battles import NOBODY, OWNER, VotedBattle, read_battles, read_conversations, save_battle
from serve.store.database import Database
from serve.store.listing import listed
from serve.store.open_votes import OpenVote, read_open_vote, save_open_vote
from serve.store.removing import remove_all, remove_older
from serve.store.tables import BATTLES, VOTES
from tests.arena.voted import NOON, battle

SAID = ((("Who am I?", "Ada."),), (("Who am I?", "Nobody."),))


def voted(number: int, **more: Any) -> VotedBattle:
    return battle(number, reason=f"because {number}", conversations=SAID, **more)


def opened(number: int, **more: Any) -> OpenVote:
    fields: dict[str, Any] = {"owner": "me", "voted_at": NOON, **more}
    return OpenVote(f"open-{number}", models=("ant", "bee"), verdict="tie", winner=None, reason="alike", **fields)


@pytest.mark.parametrize("remove", [lambda at: remove_all(at, "me"), lambda at: remove_older(at, NOON)])
def test_reasons_conversations_and_open_votes_go_and_blind_votes_stay_as_nobodys(
    database: Database, remove: Callable[[Connection], object]
) -> None:
    before = NOON - timedelta(seconds=1)
    mine, theirs = voted(1, voted_at=before), voted(2, owner="you")
    with database.writing() as connection:
        save_battle(connection, replace(mine, reason="an earlier reason"))
        for each in (mine, theirs):
            save_battle(connection, each)
        save_open_vote(connection, opened(1, voted_at=before, conversations=SAID))
        save_open_vote(connection, opened(2, owner="you"))
    with database.writing() as connection:
        remove(connection)
        remove(connection)
    with database.reading() as connection:
        kept = {each.id: each for each in read_battles(connection)}
        assert kept == {mine.id: mine.as_nobodys(), theirs.id: replace(theirs, conversations=None)}
        assert set(read_conversations(connection)) == {theirs.id}
        assert read_open_vote(connection, "open-1", "me") is None
        assert read_open_vote(connection, "open-2", "you") is not None
        assert connection.scalar(select(func.count()).select_from(VOTES)) == 3
        assert sorted(connection.scalars(select(BATTLES.c.owner))) == [NOBODY, "you", "you"]
        assert len(listed(connection, OWNER)) == 2


def test_a_reason_that_comes_after_the_vote_became_nobodys_does_not_count_it_twice(database: Database) -> None:
    made = voted(1)
    with database.writing() as connection:
        save_battle(connection, made)
        remove_all(connection, "me")
        save_battle(connection, replace(made, reason="later"))
        assert [each.reason for each in read_battles(connection)] == ["later"]
        remove_all(connection, "me")
        assert read_battles(connection) == (made.as_nobodys(),)
