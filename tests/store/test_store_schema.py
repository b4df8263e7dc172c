"""The tables: made by the migrations as they are described, and refusing what must not be."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Table, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from llava_core.errors import BadRequest
from serve.store.database import Database, read_url
from serve.store.tables import BATTLE_SLOTS, BATTLES, METADATA, RATING_SNAPSHOTS, RATINGS, VOTES

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_the_migrations_make_what_the_tables_describe(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_opening_again_and_side_by_side_changes_nothing(database: Database, url: str) -> None:
    with database.writing() as connection:
        battle(connection)
    again = Database(url)
    again.open()
    with again.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(BATTLES)) == 1
    again.close()


def test_a_new_file_that_another_server_is_writing_is_waited_for(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "chats.db", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE notes (said)")
    other.execute("BEGIN IMMEDIATE")  # on a file not in WAL mode yet, which SQLite by itself refuses to wait for
    done = Timer(0.3, other.rollback)
    done.start()
    late = Database(f"sqlite:///{tmp_path}/chats.db")
    late.open()
    with late.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    done.join()
    late.close()
    other.close()


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(IntegrityError), database.writing() as connection:
        battle(connection, slots=battle_twice(connection))
    with database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(BATTLES)) == 0


def test_a_moment_comes_back_in_utc_as_it_was(database: Database) -> None:
    with database.writing() as connection:
        battle(connection)
        assert connection.scalar(select(BATTLES.c.created_at)) == NOON


def battle(connection: Connection, slots: int = 2, id: str = "b1") -> None:
    add(connection, BATTLES, id=id, owner="me", place="arena", blind=True, created_at=NOON)
    for slot in range(slots):
        add(connection, BATTLE_SLOTS, battle_id=id, slot=slot, model=f"model-{slot}")


def battle_twice(connection: Connection) -> int:
    """Writes the same battle that is written next."""
    battle(connection)
    return 2


def add(connection: Connection, table: Table, **row: Any) -> None:
    connection.execute(insert(table).values(row))


def vote(connection: Connection, verdict: str = "slot", winner: int | None = 0, owner: str = "me") -> None:
    add(connection, VOTES, battle_id="b1", owner=owner, verdict=verdict, winner=winner, created_at=NOON)


def test_a_person_has_one_live_vote_per_battle_and_may_change_it(database: Database) -> None:
    with database.writing() as connection:
        battle(connection, slots=4)
        vote(connection, winner=3)
        vote(connection, "tie", None, owner="you")
    with pytest.raises(IntegrityError), database.writing() as connection:
        vote(connection, winner=1)
    with database.writing() as connection:
        connection.execute(update(VOTES).where(VOTES.c.owner == "me").values(replaced_at=NOON))
        vote(connection, winner=1)
        live = select(VOTES.c.winner).where(VOTES.c.owner == "me", VOTES.c.replaced_at.is_(None))
        assert connection.scalars(live).all() == [1]


def test_a_vote_that_makes_no_sense_is_refused(database: Database) -> None:
    with database.writing() as connection:
        battle(connection)
    for verdict, winner in (("slot", None), ("slot", 2), ("tie", 0), ("both_bad", 1), ("left", 0)):
        with pytest.raises(IntegrityError), database.writing() as connection:
            vote(connection, verdict, winner)


def test_a_vote_without_its_battle_is_refused_and_goes_with_it(database: Database) -> None:
    with pytest.raises(IntegrityError), database.writing() as connection:
        vote(connection, "tie", None)
    with database.writing() as connection:
        battle(connection)
        vote(connection)
        connection.execute(delete(BATTLES))
        for table in (VOTES, BATTLE_SLOTS):
            assert connection.scalar(select(func.count()).select_from(table)) == 0


def test_a_rating_lies_in_its_interval_and_a_model_is_rated_once(database: Database) -> None:
    with database.writing() as connection:
        add(connection, RATING_SNAPSHOTS, method="bt", parameters={"ties": True}, votes=3, created_at=NOON)
        snapshot = connection.scalar(select(RATING_SNAPSHOTS.c.id))
        add(connection, RATINGS, snapshot_id=snapshot, model="m", rating=1000.0, low=990.0, high=1010.0, votes=3)
    for wrong in ({"model": "m", "low": 1.0, "high": 2000.0}, {"model": "n", "low": 1001.0, "high": 1002.0}):
        with pytest.raises(IntegrityError), database.writing() as connection:
            add(connection, RATINGS, snapshot_id=snapshot, rating=1000.0, votes=3, **wrong)


@pytest.mark.parametrize(
    "url", ["", "no address", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "sqlite+x:///a.db"]
)
def test_an_address_that_can_keep_nothing_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(BadRequest, match=r"--database-url.*postgresql://"):
        read_url(url)


def test_a_password_is_never_told() -> None:
    name = Database("postgresql://me:geheim@127.0.0.1:1/x").name
    assert "geheim" not in name
