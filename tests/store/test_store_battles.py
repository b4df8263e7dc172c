"""Battles and votes come back as they were written, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import func, select

from serve.ratings import Rating
from serve.store.battles import Style, read_battles, read_conversations, save_battle, save_snapshot
from serve.store.conversations import remove_older
from serve.store.database import Database
from serve.store.listing import listed
from serve.store.tables import RATINGS, VOTES
from tests.arena.voted import NOON, battle

WHOLE = battle(
    reason="clearer",
    categories=("picture", "long"),
    left_out="an answer said 'LLaVA'",
    turns=2,
    styles=(Style(120, 1, 2, 3), Style(80)),
)


def test_a_battle_comes_back_as_it_was_voted(database: Database) -> None:
    others = [battle(2, verdict="b"), battle(3, verdict="tie"), battle(4, verdict="both_bad")]
    for made in (WHOLE, *others):
        with database.writing() as connection:
            save_battle(connection, made)
    with database.reading() as connection:
        assert read_battles(connection) == (WHOLE, *others)


def test_writing_twice_is_as_once_and_a_later_vote_takes_the_earlier_ones_place(database: Database) -> None:
    later = replace(WHOLE, reason="and shorter", voted_at=NOON + timedelta(seconds=5))
    for made in (WHOLE, WHOLE, later):
        with database.writing() as connection:
            save_battle(connection, made)
    with database.reading() as connection:
        assert read_battles(connection) == (later,)
        assert connection.scalar(select(func.count()).select_from(VOTES)) == 2


def test_what_was_said_is_kept_only_where_it_is_given_and_goes_with_its_time(database: Database) -> None:
    said = ((("A cat?", "Yes."), ("Sure?", "No.")), (("A cat?", "A dog."), ("Sure?", "Very.")))
    with database.writing() as connection:
        save_battle(connection, replace(WHOLE, conversations=said))
        save_battle(connection, battle(2))
    with database.reading() as connection:
        assert read_conversations(connection) == {WHOLE.id: said}
        assert listed(connection, WHOLE.owner) == ()
    with database.writing() as connection:
        remove_older(connection, NOON + timedelta(days=1))
        assert read_conversations(connection) == {}
        assert len(read_battles(connection)) == 2


def test_a_snapshot_keeps_ratings_with_their_intervals(database: Database) -> None:
    rated = [Rating("ant", 1010.0, 990.0, 1030.0, 1, 7, 4, 1), Rating("bee", 990.0, 970.0, 1010.0, 1, 7, 2, 1)]
    with database.writing() as connection:
        save_snapshot(connection, rated, {"style": False}, 7, NOON)
        rows = connection.execute(select(RATINGS.c.model, RATINGS.c.rating, RATINGS.c.votes)).all()
    assert sorted(map(tuple, rows)) == [("ant", 1010.0, 7), ("bee", 990.0, 7)]
