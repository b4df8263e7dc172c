"""Open comparisons: a vote about two to four answers, kept once, changed and taken back, and never rated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from llava_core.config import StoreLimits
from llava_core.engines.echo import EchoEngine
from llava_core.errors import BadRequest, Unauthorized
from serve.arena.comparing import OpenVotes
from serve.page.actions import Rooms
from serve.page.feedback import Feedback
from serve.page.history import History, owner_of
from serve.page.pictures import PictureDesk
from serve.page.room import RoomTimings
from serve.page.tending import tend
from serve.store.battles import read_battles
from serve.store.database import Database
from serve.store.keeper import Keeper
from serve.store.tables import BATTLE_SLOTS, BATTLES, MESSAGES, VOTES
from tests.page import sources
from tests.page.sources import EchoSource

QUICK = RoomTimings(update_s=0.001, grace_s=0.02)
LIMITS = StoreLimits(pause_s=0.005, retry_first_s=0.02, retry_most_s=0.05)
ME, YOU = "m" * 32, "y" * 32
COLUMNS = tuple(letter * 32 for letter in "abcd")
NAMES = ("ant", "bee", "cat", "dog")

Make = Callable[..., OpenVotes]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    engine, rooms, keepers = EchoEngine("ant", delay_s=0.0), list[Rooms](), list[Keeper]()
    engines = [engine, *(EchoEngine(name, delay_s=0.0) for name in NAMES[1:])]

    def build(database: str = "", recording: bool = False) -> OpenVotes:
        keeper = None
        if database:
            keeper = Keeper(Database(f"sqlite:///{tmp_path}/{database}"), LIMITS)
            keeper.start()
            keepers.append(keeper)
        desk = PictureDesk(tmp_path)
        made = Rooms(EchoSource(*engines), desk, Feedback(None), QUICK, history=History(keeper, desk, LIMITS))
        rooms.append(made)
        return OpenVotes(made, keeper, recording=recording)

    yield build
    for made in rooms:
        await made.aclose()
    for keeper in keepers:
        keeper.close()
    for each in engines:
        await each.aclose()


async def ask(votes: OpenVotes, count: int = 2, text: str = "Hello") -> None:
    async with asyncio.timeout(60):
        for room, model in list(zip(COLUMNS, NAMES, strict=True))[:count]:
            message = {"do": "ask", "room": room, "owner": ME, "text": text, "model": model}
            async for _ in sources.act(votes._rooms, message):
                pass


def vote(votes: OpenVotes, verdict: str, best: int | None = None, count: int = 2, **more: Any) -> Any:
    rooms = list(COLUMNS[:count])
    return votes.vote({"owner": ME, "rooms": rooms, "verdict": verdict, "best": best, **more})


def rows(file: Path) -> list[tuple[Any, ...]]:
    """Of every vote: whether it is blind, its verdict, its winner, its reason, whether it still counts."""
    database = Database(f"sqlite:///{file}")
    columns = (BATTLES.c.blind, VOTES.c.verdict, VOTES.c.winner, VOTES.c.reason, VOTES.c.replaced_at.is_(None))
    with database.reading() as connection:
        joined = select(*columns).join(BATTLES, BATTLES.c.id == VOTES.c.battle_id).order_by(VOTES.c.id)
        found = [tuple(row) for row in connection.execute(joined)]
        assert read_battles(connection) == ()  # ratings never see them
    database.close()
    return found


@pytest.mark.parametrize("database", ["votes.db", ""])
async def test_the_best_of_four_is_kept_changed_and_taken_back(make: Make, database: str, tmp_path: Path) -> None:
    votes = make(database)
    await ask(votes, 4)
    assert await vote(votes, "best", 2, 4) == {"verdict": "best", "best": 2, "reason": ""}
    assert await vote(votes, "best", 2, 4) == {"verdict": "best", "best": 2, "reason": ""}
    assert (await vote(votes, "tie", None, 4, reason=" all \n alike "))["reason"] == "all alike"
    where = {"owner": ME, "rooms": list(COLUMNS)}
    assert await votes.standing(where) == {"verdict": "tie", "best": None, "reason": "all alike"}
    assert await votes.standing({**where, "rooms": list(COLUMNS[:3])}) == {"verdict": "", "best": None, "reason": ""}
    if database:
        assert rows(tmp_path / database) == [
            (False, "slot", 2, None, False),
            (False, "tie", None, "all alike", True),
        ]
    assert (await vote(votes, "", None, 4))["verdict"] == ""
    assert (await votes.standing(where))["verdict"] == ""


async def test_a_column_without_an_answer_takes_no_part_and_the_others_keep_their_places(make: Make) -> None:
    votes = make()
    await ask(votes, 2)
    rooms = [COLUMNS[3], *COLUMNS[:2]]
    message = {"owner": ME, "rooms": rooms, "verdict": "best"}
    with pytest.raises(BadRequest, match="has to be one that is complete"):
        await votes.vote({**message, "best": 0})
    assert (await votes.vote({**message, "best": 2}))["best"] == 2
    assert (await votes.standing({"owner": ME, "rooms": rooms}))["best"] == 2


async def test_what_cannot_be_voted_on_is_refused(make: Make) -> None:
    votes = make()
    await ask(votes, 1)
    with pytest.raises(BadRequest, match="needs two answers"):
        await vote(votes, "tie")
    await ask(votes, 1, "More")
    await ask(votes, 2, "Other")
    with pytest.raises(BadRequest, match="not asked the same"):
        await vote(votes, "tie")
    with pytest.raises(BadRequest, match="best, tie or all_bad"):
        await vote(votes, "a")
    with pytest.raises(Unauthorized):
        await votes.vote({"owner": YOU, "rooms": list(COLUMNS[:2]), "verdict": "tie"})
    for bad in ([], [COLUMNS[0]], [COLUMNS[0]] * 2, None, [*COLUMNS, "e" * 32]):
        with pytest.raises(BadRequest, match="reload"):
            await votes.vote({"owner": ME, "rooms": bad, "verdict": "tie"})


@pytest.mark.parametrize("recording", [False, True])
async def test_what_was_said_is_kept_with_a_vote_only_where_it_is_recorded(
    make: Make, recording: bool, tmp_path: Path
) -> None:
    votes = make("votes.db", recording)
    await ask(votes)
    await vote(votes, "all_bad")
    assert ("whole conversation" in votes.promise) == recording
    database = Database(f"sqlite:///{tmp_path}/votes.db")
    with database.reading() as connection:
        linked = connection.scalars(select(BATTLE_SLOTS.c.conversation_id).order_by(BATTLE_SLOTS.c.slot)).all()
        said = select(func.count()).select_from(MESSAGES).where(MESSAGES.c.conversation_id.in_(filter(None, linked)))
        assert connection.scalar(said) == (4 if recording else 0)
    database.close()
    assert [bool(id) for id in linked] == [recording] * 2


async def test_who_deletes_all_their_chats_deletes_open_votes_in_memory_too(make: Make) -> None:
    votes = make()
    await ask(votes)
    await vote(votes, "tie", reason="private")
    await votes.forget(owner_of(YOU))
    assert len(votes._in_memory) == 1
    await tend(votes._rooms, {"do": "delete all", "owner": ME}, (votes,))
    assert not votes._in_memory


async def test_who_deletes_all_their_chats_deletes_their_open_votes(make: Make, tmp_path: Path) -> None:
    votes = make("votes.db", recording=True)
    await ask(votes)
    await vote(votes, "tie", reason="private")
    await tend(votes._rooms, {"do": "delete all", "owner": ME}, (votes,))
    assert rows(tmp_path / "votes.db") == []
    database = Database(f"sqlite:///{tmp_path}/votes.db")
    with database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(MESSAGES)) == 0
    database.close()


@pytest.mark.parametrize("database", ["votes.db", ""])
async def test_a_vote_is_about_the_answers_that_stood_there_and_no_later_ones(make: Make, database: str) -> None:
    votes = make(database)
    await ask(votes)
    await vote(votes, "best", 0)
    where = {"owner": ME, "rooms": list(COLUMNS[:2])}
    await ask(votes, text="And now?")
    assert (await votes.standing(where))["verdict"] == ""
    await vote(votes, "")  # nothing is there to take back, and the earlier vote stays
    await votes._rooms.tell({"do": "undo", "room": COLUMNS[0], "owner": ME})
    await votes._rooms.tell({"do": "undo", "room": COLUMNS[1], "owner": ME})
    assert await votes.standing(where) == {"verdict": "best", "best": 0, "reason": ""}
    async for _ in sources.act(votes._rooms, {"do": "retry", "room": COLUMNS[0], "owner": ME, "model": NAMES[0]}):
        pass
    assert (await votes.standing(where))["verdict"] == ""
