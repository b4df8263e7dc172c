"""Chats outlive the page: found again by whoever has the browser's secret, whatever happened to the server."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from os import remove
from os.path import exists
from pathlib import Path
from typing import Any

import pytest

from llava_core.config import StoreLimits
from llava_core.engines.echo import EchoEngine
from llava_core.errors import Unauthorized, WorkerLost
from serve.page import tending
from serve.page.actions import Rooms
from serve.page.feedback import Feedback
from serve.page.history import History, HistoryTrouble, owner_of
from serve.page.pictures import PictureDesk
from serve.page.room import RoomTimings
from serve.store.database import Database
from serve.store.keeper import Keeper
from tests.page import sources
from tests.page.sources import EchoSource, ToldSource
from tests.page.test_page_actions import act, picture, said

QUICK = RoomTimings(update_s=0.001, grace_s=0.02)
LIMITS = StoreLimits(pause_s=0.005, retry_first_s=0.02, retry_most_s=0.05)
ME, YOU = "m" * 32, "y" * 32
ROOM, OTHER = "r" * 32, "o" * 32

Start = Callable[..., Awaitable[Rooms]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """`await start()` is a page's server on the test's database; a second one is that after a restart."""
    made: list[tuple[Rooms, EchoEngine]] = []

    async def begin(source: Any = None, name: str = "", keep: bool = True) -> Rooms:
        uploads = tmp_path / f"uploads-{len(made)}"
        uploads.mkdir()
        engine = EchoEngine("echo", delay_s=0.0005)
        keeper = Keeper(Database(f"sqlite:///{tmp_path}/{name or 'chats.db'}"), LIMITS) if keep else None
        if keeper:
            keeper.start()
        desk = PictureDesk(uploads)
        rooms = Rooms(source or EchoSource(engine), desk, Feedback(None), QUICK, history=History(keeper, desk, LIMITS))
        made.append((rooms, engine))
        return rooms

    yield begin
    for rooms, engine in made:
        await rooms.aclose()
        rooms.history.close()
        await engine.aclose()


def there(path: object) -> bool:
    return exists(str(path))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 (a thread changes it)
            await asyncio.sleep(0.005)


async def titles(rooms: Rooms, owner: str = ME, query: str = "") -> list[str]:
    return [chat.title for chat in (await rooms.history.chats(owner_of(owner), query))[0]]


async def test_a_chat_goes_on_after_a_restart_with_its_pictures(start: Start, tmp_path: Path) -> None:
    first = await start()
    claim = picture(tmp_path / "uploads-0", "cat.png", (64, 48))
    await act(first, "ask", ROOM, owner=ME, text="What is it?", pictures=[claim], model="echo")
    before = await act(first, "ask", ROOM, owner=ME, text="Its colour?", model="echo")
    first.history.close()
    shutil.rmtree(tmp_path / "uploads-0")

    second = await start()
    after = await act(second, "open", ROOM, owner=ME)
    assert [turn["answer"]["text"] for turn in after["turns"]] == [turn["answer"]["text"] for turn in before["turns"]]
    assert after["turns"][0]["answer"]["figures"] == before["turns"][0]["answer"]["figures"]
    (shown,) = after["turns"][0]["pictures"]
    assert there(shown["path"])
    view = await act(second, "ask", ROOM, owner=ME, text="And now?", model="echo")
    assert said(view).startswith("I received 5 turns and 1 image.")
    assert "1 image (64x48)" in said(view)


async def test_branches_ratings_and_the_system_prompt_are_there_after_a_restart(start: Start) -> None:
    first = await start()
    settings = {"system": "Be brief.", "seed": "3"}
    await act(first, "ask", ROOM, owner=ME, text="one", model="echo", settings=settings)
    view = await act(first, "edit", ROOM, owner=ME, turn="t1", text="uno", model="echo", settings=settings)
    answer = view["turns"][0]["answer"]["id"]
    await act(first, "rate", ROOM, owner=ME, answer=answer, rating="like")
    first.history.close()
    second = await start()
    view = await act(second, "open", ROOM, owner=ME)
    assert (view["turns"][0]["wording"], view["turns"][0]["wordings"]) == (1, 2)
    assert view["turns"][0]["answer"]["rating"] == "like"
    view = await act(second, "show wording", ROOM, owner=ME, turn=view["turns"][0]["id"], shown=0)
    assert view["turns"][0]["text"] == "one"
    await act(second, "undo", ROOM, owner=ME)
    assert second._rooms[ROOM].room.settings.system == "Be brief."


async def test_a_chat_is_told_with_what_it_was_asked_with_and_goes_on_so_after_a_restart(start: Start) -> None:
    settings = {"system": "Be brief.", "temperature": 0.0, "top_p": 0.5, "max_tokens": 640, "seed": "3"}
    kept = {"system": "Be brief.", "temperature": 0.0, "top_p": 0.5, "max_tokens": 640}
    source = ToldSource()
    first = await start(source)
    source.say("half")
    source.fail(WorkerLost("it went"))
    view = await act(first, "ask", ROOM, owner=ME, text="one", model="told", settings=settings)
    assert view["settings"] == kept
    first.history.close()

    source = ToldSource()
    second = await start(source)
    assert (await act(second, "open", ROOM, owner=ME))["settings"] == kept
    source.end()
    await act(second, "resume", ROOM, owner=ME)
    sampling = source.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed) == (0.0, 0.5, 640, None)


async def test_a_chat_whose_parameters_make_no_sense_is_opened_all_the_same(start: Start) -> None:
    rooms = await start()
    answer = {"model": "echo", "text": "yes", "parameters": {"temperature": -3}}
    turn = {"question": "one", "answers": [answer]}
    text = json.dumps({"format": "llava-serve-chat/1", "system": "Be brief.", "turns": [turn]})
    await rooms.bring_in(ROOM, owner_of(ME), "chat.json", text)
    assert (await act(rooms, "open", ROOM, owner=ME))["settings"] == {"system": "Be brief.", "temperature": -3}
    assert (await act(rooms, "resume", ROOM, owner=ME))["turns"][0]["answer"]["state"] == "done"


async def test_what_came_before_the_end_is_there_and_marked_as_cut_off(start: Start) -> None:
    source = ToldSource()
    first = await start(source)
    views = sources.act(first, {"do": "ask", "room": ROOM, "owner": ME, "text": "hello", "model": "told"})
    async with asyncio.timeout(60):
        source.say("half of ")
        async for view in views:
            if view["turns"][-1]["answer"]["blocks"]:
                break
        await titles(first)  # which waits until it is written
    second = await start()
    view = await act(second, "open", ROOM, owner=ME)
    answer = view["turns"][0]["answer"]
    assert (answer["text"], answer["state"]) == ("half of ", "failed")
    assert (answer["notice"]["title"], answer["notice"]["retry"]) == ("This answer was cut off", True)
    assert view["running"] is False
    assert said(await act(second, "ask", ROOM, owner=ME, text="go on", model="echo")).startswith("I received 3 turns")


async def test_the_list_is_the_owners_own_and_can_be_searched(start: Start) -> None:
    rooms = await start()
    await act(rooms, "ask", ROOM, owner=ME, text="About cats", model="echo")
    await act(rooms, "ask", OTHER, owner=ME, text="About dogs", model="echo")
    await act(rooms, "ask", "z" * 32, owner=YOU, text="A secret", model="echo")
    assert await titles(rooms) == ["About dogs", "About cats"]
    assert await titles(rooms, query="CATS") == ["About cats"]
    assert await titles(rooms, YOU) == ["A secret"]
    assert await titles(rooms, "n" * 32) == []


async def test_older_chats_are_listed_when_they_are_asked_for(start: Start) -> None:
    rooms = await start()
    rooms.history._limits = replace(LIMITS, max_listed=2)
    for number in range(5):
        await act(rooms, "ask", f"room-{number}" + "r" * 32, owner=ME, text=f"Chat {number}", model="echo")
        await titles(rooms)  # which waits until it is written
    for looks, most, older in ((1, 2, True), (2, 4, True), (3, 5, False), (-1, 2, True), ("x", 2, True)):
        heard = await tending.listed(rooms, {"owner": ME, "looks": looks})
        assert [row["title"] for row in heard["chats"]] == [f"Chat {number}" for number in (4, 3, 2, 1, 0)[:most]]
        assert heard["older"] is older


async def test_a_comparison_is_one_entry_after_a_restart_and_is_deleted_as_a_whole(start: Start) -> None:
    first = await start()
    in_comparison = {"owner": ME, "place": "compare", "comparison": "c" * 32, "model": "echo"}
    for slot, room in enumerate((ROOM, OTHER, "z" * 32)):
        await act(first, "ask", room, text="About cats", slot=slot, **in_comparison)
    await act(first, "part", OTHER, **in_comparison)
    first.history.close()

    second = await start()
    await act(second, "ask", ROOM, text="And dogs?", slot=0, **in_comparison)
    await act(second, "ask", OTHER, owner=ME, text="And dogs?", model="echo")
    alone, comparison = (await tending.listed(second, {"owner": ME}))["chats"]
    assert (alone["id"], alone["columns"]) == (OTHER, [])
    assert comparison["id"] == "c" * 32
    assert [column["id"] for column in comparison["columns"]] == [ROOM, "z" * 32]
    done = await tending.tend(second, {"do": "delete", "owner": ME, "id": "c" * 32})
    assert sorted(done["gone"]) == [ROOM, "z" * 32]
    assert await titles(second) == ["About cats"]
    assert (await act(second, "open", ROOM, owner=ME))["turns"] == []


async def test_nobody_opens_anothers_chat_though_they_know_its_room(start: Start) -> None:
    first = await start()
    await act(first, "ask", ROOM, owner=ME, text="mine", model="echo")
    with pytest.raises(Unauthorized, match="another browser"):
        await act(first, "open", ROOM, owner=YOU)
    first.history.close()
    second = await start()
    with pytest.raises(Unauthorized, match="another browser"):
        await act(second, "open", ROOM, owner=YOU)
    assert (await act(second, "open", ROOM, owner=ME))["turns"][0]["text"] == "mine"


async def test_a_deleted_chat_ends_its_answer_and_does_not_come_back(start: Start) -> None:
    source = ToldSource()
    rooms = await start(source)
    views = sources.act(rooms, {"do": "ask", "room": ROOM, "owner": ME, "text": "hello", "model": "told"})
    source.say("half")
    async with asyncio.timeout(60):
        async for view in views:
            if view["turns"][-1]["answer"]["blocks"]:
                break
        assert await titles(rooms) == ["hello"]
        await rooms.drop(owner_of(YOU), [ROOM])
        assert not source.left.is_set()
        await rooms.drop(owner_of(ME), [ROOM])
        assert await rooms.history.delete(ROOM, owner_of(ME))
        await source.left.wait()
    assert await titles(rooms) == []
    assert (await act(rooms, "open", ROOM, owner=ME))["turns"] == []


async def test_the_longest_unused_room_is_read_again_when_somebody_comes_back(start: Start, tmp_path: Path) -> None:
    rooms = await start()
    rooms._most = 1
    await act(rooms, "ask", ROOM, owner=ME, text="one", model="echo")
    await titles(rooms)
    await act(rooms, "ask", OTHER, owner=ME, text="two", model="echo")
    assert len(rooms._rooms) == 1
    assert (await act(rooms, "open", ROOM, owner=ME))["turns"][0]["text"] == "one"


async def test_a_picture_whose_file_has_gone_is_put_back(start: Start, tmp_path: Path) -> None:
    rooms = await start()
    claim = picture(tmp_path / "uploads-0", "cat.png", (64, 48))
    await act(rooms, "ask", ROOM, owner=ME, text="What is it?", pictures=[claim], model="echo")
    await titles(rooms)
    remove(claim["path"])
    view = await act(rooms, "ask", ROOM, owner=ME, text="And now?", model="echo")
    assert "1 image (64x48)" in said(view)


async def test_without_a_database_the_chat_goes_on_and_both_halves_are_there_later(
    start: Start, tmp_path: Path
) -> None:
    first = await start(name="kept/chats.db")
    await act(first, "ask", ROOM, owner=ME, text="before", model="echo")
    first.history.close()
    (tmp_path / "kept").rename(tmp_path / "away")
    (tmp_path / "kept").write_text("in the way")

    second = await start(name="kept/chats.db")
    await until(lambda: second.history.report()["trouble"] != "")
    assert said(await act(second, "ask", ROOM, owner=ME, text="meanwhile", model="echo")).startswith(
        "I received 1 turn"
    )
    assert second.history.report()["unsaved"] == 1
    with pytest.raises(HistoryTrouble, match="database"):
        await titles(second)
    (tmp_path / "kept").unlink()
    (tmp_path / "away").rename(tmp_path / "kept")
    await until(lambda: second.history.report()["trouble"] == "")
    assert await titles(second) == ["before"]
    second.history.close()

    third = await start(name="kept/chats.db")
    view = await act(third, "open", ROOM, owner=ME)
    assert (view["turns"][0]["text"], view["turns"][0]["wordings"]) == ("meanwhile", 2)
    view = await act(third, "show wording", ROOM, owner=ME, turn=view["turns"][0]["id"], shown=0)
    assert view["turns"][0]["text"] == "before"


async def test_with_history_off_nothing_is_written_and_the_promise_says_so(start: Start, tmp_path: Path) -> None:
    rooms = await start(keep=False)
    await act(rooms, "ask", ROOM, owner=ME, text="one", model="echo")
    assert await rooms.history.chats(owner_of(ME)) == ((), False)
    assert "not kept" in rooms.history.promise
    assert rooms.history.report() == {"on": False, "trouble": "", "unsaved": 0}
    assert not there(tmp_path / "chats.db")
    assert (await act(rooms, "open", ROOM, owner=ME))["turns"][0]["text"] == "one"


async def test_a_link_shows_the_chat_until_it_is_withdrawn(start: Start) -> None:
    rooms = await start()
    await act(rooms, "ask", ROOM, owner=ME, text="one", model="echo")
    assert await rooms.history.share(ROOM, owner_of(YOU)) is None
    token = await rooms.history.share(ROOM, owner_of(ME))
    assert token is not None
    shown = await rooms.history.shared(token)
    assert shown is not None
    assert shown.messages[0].text == "one"
    assert await rooms.history.withdraw(ROOM, owner_of(ME))
    assert await rooms.history.shared(token) is None
