"""A blind battle: nothing tells the models before the vote, no vote before both answers, one vote per battle."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llava_core.config import ArenaLimits, StoreLimits
from llava_core.engines.echo import EchoEngine
from llava_core.errors import BadRequest, LlavaError, NoWorker, Unauthorized
from serve.arena import standings
from serve.arena.battles import Arena
from serve.arena.blind_rooms import BlindRooms
from serve.arena.board import points_of
from serve.arena.ledger import Ledger
from serve.page.actions import Rooms
from serve.page.feedback import Feedback
from serve.page.history import History, owner_of
from serve.page.models import ModelList
from serve.page.pictures import PictureDesk
from serve.page.room import RoomTimings
from serve.page.tending import tend
from serve.store.battles import NOBODY
from serve.store.database import Database
from serve.store.keeper import Keeper
from tests.page import sources
from tests.page.sources import EchoSource

QUICK = RoomTimings(update_s=0.001, grace_s=0.02)
LIMITS = StoreLimits(pause_s=0.005, retry_first_s=0.02, retry_most_s=0.05)
ARENA = ArenaLimits(fresh_s=0.0, retry_s=0.02, snapshot_s=0.0)
ME, YOU = "m" * 32, "y" * 32
SECRET, OTHER = "s" * 32, "o" * 32

Make = Callable[..., Arena]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    engines: list[EchoEngine] = []
    arenas: list[Arena] = []
    keepers: list[Keeper] = []

    def build(*names: str, database: str = "", recording: bool = False, **more: Any) -> Arena:
        made = [EchoEngine(name, delay_s=0.0005, **more) for name in names or ("ant-7b", "bee-13b")]
        engines.extend(made)
        keeper = None
        if database:
            keeper = Keeper(Database(f"sqlite:///{tmp_path}/{database}"), LIMITS)
            keeper.start()
            keepers.append(keeper)
        source = EchoSource(*made)
        rooms = BlindRooms(source, PictureDesk(tmp_path), Feedback(None), QUICK)
        arena = Arena(rooms, ModelList(source), Ledger(keeper, ARENA), recording=recording, random=Random(4))
        arenas.append(arena)
        return arena

    yield build
    for arena in arenas:
        await arena.rooms.aclose()
    for engine in engines:
        await engine.aclose()
    for keeper in keepers:
        keeper.close()


async def act(arena: Arena, side: str, do: str = "ask", secret: str = SECRET, **more: Any) -> list[dict[str, Any]]:
    message = {"do": do, "room": f"{secret}-{side}", "owner": ME, "text": "What is it?", **more}
    return [view async for view in sources.act(arena, message, f"reader-{side}")]


def shown(views: list[dict[str, Any]]) -> str:
    """All of it but the rooms' names, whose letters are drawn by chance."""
    return json.dumps([{name: value for name, value in view.items() if name != "born"} for view in views])


async def both(arena: Arena, **more: Any) -> list[dict[str, Any]]:
    sides = await asyncio.gather(act(arena, "left", **more), act(arena, "right", **more))
    return [view for views in sides for view in views]


async def vote(arena: Arena, verdict: str = "a", secret: str = SECRET, **more: Any) -> dict[str, Any]:
    return await arena.vote({"room": f"{secret}-left", "owner": ME, "verdict": verdict, **more})


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110 (a thread changes it)
            await asyncio.sleep(0.005)


async def test_nothing_tells_the_models_before_the_vote_and_everything_after(make: Make) -> None:
    arena = make()
    said = shown(await both(arena, model="bee-13b"))
    assert "ant" not in said.replace("assistant", "")
    assert "bee" not in said
    assert "first_token_s" not in said
    assert '"Model A"' in said
    assert '"Model B"' in said
    with pytest.raises(BadRequest, match="vote first"):
        await arena.export({"room": f"{SECRET}-left", "owner": ME, "kind": "json"})
    told = await vote(arena)
    assert {model["name"] for model in told["models"]} == {"ant-7b", "bee-13b"}
    for side, model in zip(("left", "right"), told["models"], strict=True):
        view = await arena.tell({"do": "open", "room": f"{SECRET}-{side}", "owner": ME})
        assert view["turns"][0]["answer"]["model"] == model["name"]
        assert view["turns"][0]["answer"]["figures"]
        assert view["battle"]["voted"] == "a"
        file = await arena.export({"room": f"{SECRET}-{side}", "owner": ME, "kind": "json"})
        assert model["name"] in file
    # A battle that is still open tells nothing by way of one that is not.
    other = "o" * 32
    for side in ("left", "right"):
        asked = {"do": "ask", "owner": ME, "text": "and this?", "room": f"{other}-{side}"}
        await arena.tell(asked)
    rooms = [f"{other}-{side}" for side in ("left", "right")]
    file = await arena.export({"room": f"{SECRET}-left", "rooms": rooms, "owner": ME, "kind": "json"})
    assert "and this?" not in file
    for do in ("copy", "join"):
        with pytest.raises(BadRequest, match="takes nothing over"):
            await arena.tell({"do": do, "room": f"{SECRET}-left", "from": f"{other}-left", "owner": ME})


async def test_an_error_does_not_tell_the_model_either(make: Make) -> None:
    arena = make("ant-7b", "bee-13b", fail_after=2)
    views = await both(arena)
    assert views[-1]["turns"][0]["answer"]["state"] == "failed"
    said = shown(views)
    assert "Model B failed after 2 words" in said
    assert "13b" not in said
    with pytest.raises(BadRequest, match="both answers, complete"):
        await vote(arena)


async def test_a_vote_waits_until_both_answers_are_there(make: Make) -> None:
    arena = make()
    with pytest.raises(BadRequest, match="no battle here yet"):
        await vote(arena)
    await act(arena, "left")
    with pytest.raises(BadRequest, match="both answers, complete"):
        await vote(arena)
    running = asyncio.create_task(act(arena, "right", text="word " * 2000))
    await until(lambda: _said_something(arena, "right"))
    with pytest.raises(BadRequest, match="both answers, complete"):
        await vote(arena)
    await arena.tell({"do": "stop", "room": f"{SECRET}-right", "owner": ME})
    await running
    with pytest.raises(BadRequest, match="both answers, complete"):
        await vote(arena)
    await act(arena, "right", do="retry", settings={"max_tokens": 64})
    with pytest.raises(BadRequest, match="not asked the same"):
        await vote(arena)
    assert await arena.ledger.battles() == ()


async def _said_something(arena: Arena, side: str) -> bool:
    view = await arena.tell({"do": "open", "room": f"{SECRET}-{side}", "owner": ME})
    return bool(view["turns"] and view["turns"][-1]["answer"]["blocks"])


async def test_the_same_two_models_go_on_over_turns_and_after_the_vote_which_is_one(make: Make) -> None:
    arena = make("ant-7b", "bee-13b", "cat-34b")
    await both(arena)
    await both(arena, text="And its colour?")
    await both(arena, do="retry")
    told = await vote(arena, "tie", reason="  both\n fine ")
    [kept] = await arena.ledger.battles()
    assert (kept.verdict, kept.reason, kept.turns, kept.categories) == ("tie", "both fine", 2, ("text",))
    assert kept.language == "English"
    assert kept.styles[0].words > 0
    assert kept.conversations is None
    with pytest.raises(BadRequest, match="takes no other vote"):
        await vote(arena, "a")
    await vote(arena, "tie", reason="on second thoughts")
    [kept] = await arena.ledger.battles()
    assert kept.reason == "on second thoughts"
    views = await both(arena, text="Go on")
    assert {views[-1]["turns"][-1]["answer"]["model"]} <= {model["name"] for model in told["models"]}


async def test_a_battle_is_its_browsers_own(make: Make) -> None:
    arena = make()
    await both(arena)
    with pytest.raises(Unauthorized):
        await vote(arena, owner=YOU)
    with pytest.raises(Unauthorized):
        await act(arena, "left", owner=YOU)
    with pytest.raises(BadRequest, match="the vote is the rating"):
        await arena.tell({"do": "rate", "room": f"{SECRET}-left", "owner": ME, "rating": "like", "answer": "a1"})
    with pytest.raises(BadRequest, match="lost track"):
        await arena.tell({"do": "open", "room": SECRET, "owner": ME})


async def test_one_model_alone_makes_no_battle(make: Make) -> None:
    with pytest.raises(NoWorker, match="two models and 1 is on offer"):
        await act(make("ant-7b"), "left")


def text_only(arena: Arena, *names: str) -> None:
    for name in names:
        engine = arena.rooms._source.engines[name]  # type: ignore[attr-defined]
        engine._info = replace(engine._info, accepts_images=False)


async def test_questions_with_pictures_meet_only_models_that_take_them(make: Make) -> None:
    arena = make("ant-7b", "bee-13b", "cat-34b", "dog-70b")
    text_only(arena, "ant-7b", "dog-70b")
    for number in range(12):
        secret = f"{number}".rjust(32, "s")
        await arena.tell({"do": "ask", "room": f"{secret}-left", "owner": ME, "text": "", "pictures": [{"path": "x"}]})
        assert set(arena._battles[secret].models) == {"bee-13b", "cat-34b"}


async def test_too_few_models_that_take_pictures_are_named_as_the_reason(make: Make) -> None:
    arena = make("ant-7b", "bee-13b")
    text_only(arena, "bee-13b")
    with pytest.raises(NoWorker, match="two models that take them and 1 on offer does"):
        await act(arena, "left", pictures=[{"path": "x"}])
    await both(arena)
    with pytest.raises(BadRequest, match="of this battle takes no pictures"):
        await act(arena, "left", pictures=[{"path": "x"}])
    await vote(arena)


async def test_a_name_that_an_answer_tells_leaves_the_battle_out(make: Make) -> None:
    arena = make()
    await both(arena, text="Say this: I am LLaVA.")
    told = await vote(arena)
    assert "LLaVA" in told["left_out"]
    assert (await arena.ledger.battles())[0].left_out == told["left_out"]


@pytest.mark.parametrize("then", ["edit", "undo"])
async def test_a_name_that_was_told_and_taken_back_leaves_the_battle_out_too(make: Make, then: str) -> None:
    arena = make()
    await both(arena)
    views = await both(arena, text="Say this: I am LLaVA.")
    await both(arena, do=then, turn=views[-1]["turns"][-1]["id"], text="Something else?")
    await both(arena, text="And now?")
    assert "LLaVA" in (await vote(arena))["left_out"]


async def test_ratings_move_with_the_vote_once_both_are_rated(make: Make) -> None:
    arena = make()
    told: dict[str, Any] = {}
    for number, verdict in enumerate("abab"):
        await both(arena, secret=f"{number}" * 32)
        told = await vote(arena, verdict, f"{number}" * 32)
    moves = {model["name"]: (model["before"], model["after"]) for model in told["models"]}
    assert sum(after for _, after in moves.values()) == pytest.approx(2000)
    assert all(before is not None for before, _ in moves.values())


async def test_others_go_on_while_a_vote_is_rated(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    arena, rating, go_on = make(), threading.Event(), threading.Event()

    def slowly(battles: Any) -> dict[str, float]:
        rating.set()
        assert go_on.wait(60)
        return points_of(battles)

    monkeypatch.setattr(standings, "points_of", slowly)
    await both(arena)
    voting = asyncio.create_task(vote(arena))
    try:
        assert await asyncio.to_thread(rating.wait, 60)
        async with asyncio.timeout(60):
            await both(arena, secret=OTHER)
        assert not voting.done()
    finally:
        go_on.set()
    assert (await voting)["voted"] == "a"


async def test_votes_are_found_again_after_a_restart_with_what_was_said_if_recorded(make: Make) -> None:
    arena = make(database="a.db", recording=True)
    await both(arena)
    await vote(arena, "b", reason="shorter")
    again = make(database="a.db")
    await until(lambda: _has_votes(again))
    [kept] = await again.ledger.battles()
    assert (kept.verdict, kept.reason) == ("b", "shorter")
    said = await again.ledger.conversations()
    assert said[kept.id][0][0][0] == "What is it?"
    assert "for whoever runs it" in arena.promise
    assert "not what you ask" in again.promise


async def _has_votes(arena: Arena) -> bool:
    return len(await arena.ledger.battles()) == 1


async def _well(arena: Arena) -> bool:
    await arena.ledger.battles()
    return not arena.ledger.trouble


async def test_votes_count_while_the_database_is_away_and_are_written_when_it_is_back(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "gone").write_text("a file where the folder should be")
    arena = make(database="gone/a.db")
    await both(arena)
    await vote(arena)
    assert len(await arena.ledger.battles()) == 1
    await until(lambda: _waits(arena))
    assert "1 vote waits to be written" in arena.ledger.trouble
    (tmp_path / "gone").unlink()
    await until(lambda: _well(arena))
    assert len(await make(database="gone/a.db").ledger.battles()) == 1


async def _waits(arena: Arena) -> bool:
    return "waits" in arena.ledger.trouble


async def test_without_a_database_votes_are_counted_and_the_page_says_for_how_long(make: Make) -> None:
    arena = make()
    await both(arena)
    await vote(arena)
    assert len(await arena.ledger.battles()) == 1
    assert "gone when it restarts" in arena.ledger.trouble
    assert "until it restarts" in arena.promise


@pytest.mark.parametrize("database", ["a.db", ""])
async def test_who_deletes_all_their_chats_leaves_how_they_voted_and_nothing_they_said(
    make: Make, tmp_path: Path, database: str
) -> None:
    arena = make(database=database, recording=True)
    await both(arena)
    await vote(arena, "b", reason="private")
    desk = PictureDesk(tmp_path)
    history = History(arena.ledger._keeper, desk, LIMITS)
    rooms = Rooms(arena.rooms._source, desk, Feedback(None), QUICK, history=history)
    await tend(rooms, {"do": "delete all", "owner": YOU}, (arena,))
    assert (await arena.ledger.battles())[0].reason == "private"
    await tend(rooms, {"do": "delete all", "owner": ME}, (arena,))
    [kept] = await arena.ledger.battles()
    assert (kept.verdict, kept.reason, kept.owner, kept.conversations) == ("b", "", NOBODY, None)
    assert await arena.ledger.conversations() == {}
    assert (await arena.tell({"do": "open", "room": f"{SECRET}-left", "owner": ME}))["turns"] == []
    with pytest.raises(BadRequest, match="no battle here yet"):
        await vote(arena, "b", reason="again")


async def test_a_vote_that_waits_for_the_database_is_not_written_for_who_deleted_their_chats(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "gone").write_text("a file where the folder should be")
    arena = make(database="gone/a.db")
    await both(arena)
    await vote(arena, reason="private")
    await until(lambda: _waits(arena))
    await arena.forget(owner_of(ME))
    assert "waits" not in arena.ledger.trouble
    (tmp_path / "gone").unlink()
    await until(lambda: _well(arena))
    assert await make(database="gone/a.db").ledger.battles() == ()


async def test_a_vote_that_is_none_is_refused(make: Make) -> None:
    arena = make()
    await both(arena)
    with pytest.raises(LlavaError, match="a vote is a, b, tie or both_bad"):
        await vote(arena, "left")
