"""A room's answer goes on whoever looks, ends when told to, and keeps errors out of the text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llava_core.errors import BadImage, ContextOverflow, WorkerLost
from llava_core.types import Sampling
from serve.page import session
from serve.page.pictures import PictureDesk
from serve.page.room import Room, RoomTimings, Settings
from serve.page.session import Chat, Picture
from serve.quota import Quota
from serve.quotas import Quotas
from tests.page.sources import ToldSource

QUICK = RoomTimings(update_s=0.001, grace_s=0.02)


@pytest.fixture
async def source() -> ToldSource:
    return ToldSource()


@pytest.fixture
async def room(source: ToldSource, tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(source, PictureDesk(tmp_path), "me", QUICK)
    yield made
    await made.aclose()


async def until(room: Room, state: str) -> Chat:
    async with asyncio.timeout(60):
        async for chat in room.follow("test"):
            if chat.turns and chat.turns[-1].answer.state == state:
                return chat
    assert room.chat.turns[-1].answer.state == state
    return room.chat


async def test_an_answer_streams_and_ends_with_its_figures(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings(sampling=Sampling(seed=7)))
    source.say("Good ")
    assert (await until(room, "streaming")).turns[-1].answer.text.startswith("Good")
    source.say("day")
    source.end(completion_tokens=3)
    answer = (await until(room, "done")).turns[-1].answer
    assert answer.text == "Good day"
    assert answer.figures is not None
    assert (answer.figures.usage.image_tokens, answer.figures.usage.cached_tokens) == (4, 2)
    assert source.requests[0].sampling.seed == 7
    assert source.requests[0].owner == "me"


async def test_each_answer_leaves_one_line_of_log_with_its_requests_id_and_no_word_of_it(
    room: Room, source: ToldSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await room.ask("a-secret", (), "told", Settings())
    source.say("Good day")
    source.end(completion_tokens=3)
    await until(room, "done")
    await room.ask("a-secret", (), "told", Settings())
    source.fail(WorkerLost("gone"))
    await until(room, "failed")
    await asyncio.sleep(0)
    lines = [record.getMessage() for record in caplog.records if record.name == "serve.page.room"]
    assert [line.split(" model=")[0] for line in lines] == [f"chat {request.id}" for request in source.requests]
    assert "outcome=stop tokens=3" in lines[0]
    assert "outcome=WorkerLost tokens=-" in lines[1]
    assert not [line for line in lines if "a-secret" in line or "Good" in line]


async def test_stop_keeps_what_was_said_and_lets_the_worker_go(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    source.say("half")
    await until(room, "streaming")
    await room.stop()
    answer = room.chat.turns[-1].answer
    assert (answer.state, answer.text, answer.notice) == ("stopped", "half", None)
    assert source.left.is_set()


async def test_an_answer_stopped_before_it_began_is_stopped(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    await room.stop()
    assert room.chat.turns[-1].answer.state == "stopped"
    assert not room.is_answering


async def test_a_failure_stands_beside_what_was_said(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    source.say("half")
    source.fail(WorkerLost("the worker went away"))
    answer = (await until(room, "failed")).turns[-1].answer
    assert answer.text == "half"
    assert answer.notice is not None
    assert (answer.notice.code, answer.notice.retryable) == ("WorkerLost", True)


async def test_a_stream_that_just_ends_is_a_lost_worker(room: Room, source: ToldSource, tmp_path: Path) -> None:
    class Ending(ToldSource):
        async def stream(self, request: object):  # type: ignore[override]
            return
            yield

    room = Room(Ending(), PictureDesk(tmp_path), "me", QUICK)
    await room.ask("hello", (), "told", Settings())
    notice = (await until(room, "failed")).turns[-1].answer.notice
    assert notice is not None
    assert notice.code == "WorkerLost"


async def test_what_nobody_foresaw_is_told_without_its_insides(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    source.fail(RuntimeError("secret /path"))
    notice = (await until(room, "failed")).turns[-1].answer.notice
    assert notice is not None
    assert notice.code == "EngineFailure"
    assert "secret" not in notice.message
    assert source.requests[0].id in notice.message


async def test_a_picture_that_has_gone_is_a_notice(room: Room, tmp_path: Path) -> None:
    gone = Picture("gone.png", str(tmp_path / "gone.png"), "", "image/png", 3)
    await room.ask("hello", (gone,), "told", Settings())
    notice = (await until(room, "failed")).turns[-1].answer.notice
    assert notice is not None
    assert notice.code == "BadImage"


async def test_a_question_that_cannot_be_asked_stands_in_the_chat_with_its_reason(room: Room) -> None:
    room.refuse(BadImage("too large"), "what is it?", (), "told")
    turn = room.chat.turns[-1]
    assert (turn.text, turn.answer.state) == ("what is it?", "failed")
    assert session.messages(session.ask(room.chat, "next", (), "told"), {})[0].text == "next"


async def test_asking_again_ends_the_answer_on_its_way(room: Room, source: ToldSource) -> None:
    await room.ask("one", (), "told", Settings())
    source.say("half")
    await until(room, "streaming")
    await room.ask("two", (), "told", Settings())
    assert room.chat.turns[0].answer.state == "stopped"
    source.end()
    await until(room, "done")


async def test_a_reader_who_leaves_frees_the_slot(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    source.say("half")
    await until(room, "streaming")
    room.leave("test")
    async with asyncio.timeout(60):
        await source.left.wait()
    await until(room, "stopped")


async def test_a_reader_who_comes_back_in_time_finds_the_answer_going_on(source: ToldSource, tmp_path: Path) -> None:
    room = Room(source, PictureDesk(tmp_path), "me", RoomTimings(update_s=0.001, grace_s=0.1))
    await room.ask("hello", (), "told", Settings())
    source.say("half")
    await until(room, "streaming")
    room.leave("test")
    back = room.follow("again")
    assert (await anext(back)).turns[-1].answer.text == "half"
    await asyncio.sleep(0.15)  # longer than the grace
    source.say(" whole")
    source.end()
    assert (await until(room, "done")).turns[-1].answer.text == "half whole"


async def test_two_readers_see_the_same_answer(room: Room, source: ToldSource) -> None:
    async def watch(reader: str) -> Chat:
        chat = room.chat
        async for shown in room.follow(reader):
            chat = shown
        return chat

    await room.ask("hello", (), "told", Settings())
    async with asyncio.timeout(60):
        watching = [asyncio.create_task(watch(name)) for name in ("a", "b")]
        await source.asked.wait()
        source.say("same")
        source.end()
        for chat in await asyncio.gather(*watching):
            assert chat.turns[-1].answer.text == "same"
            assert chat.turns[-1].answer.state == "done"


async def test_an_answer_that_nobody_comes_to_read_is_not_made(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    async with asyncio.timeout(60):
        await source.asked.wait()
        await source.left.wait()
    await until(room, "stopped")


async def test_a_place_is_held_until_the_answer_is_there_and_refused_beside_it(room: Room, source: ToldSource) -> None:
    quotas = Quotas(address=Quota(at_once=1))
    scope = {"type": "http", "client": ("192.0.2.1", 1), "headers": []}
    await room.ask("one", (), "told", Settings(), lambda: quotas.place(scope))
    source.say("half")
    await until(room, "streaming")
    other = Room(source, PictureDesk(Path()), "me", QUICK)
    await other.ask("two", (), "told", Settings(), lambda: quotas.place(scope))
    notice = (await until(other, "failed")).turns[-1].answer.notice
    assert notice is not None
    assert (notice.code, notice.retryable, notice.retry_after) == ("Overloaded", True, 2.0)
    source.end()
    await until(room, "done")
    source.end()
    await other.retry("told", Settings(), place=lambda: quotas.place(scope))
    await until(other, "done")


async def test_taking_a_question_back_ends_its_answer_and_can_be_undone(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    source.say("half")
    await until(room, "streaming")
    await room.change(session.undo)
    assert room.chat.turns == ()
    assert source.left.is_set()
    await room.change(session.restore)
    assert room.chat.turns[-1].answer.text == "half"


async def test_many_words_at_once_are_one_look(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    looks = 0
    for _ in range(500):
        source.say("word ")
    source.end()
    async for _ in room.follow("test"):
        looks += 1
    assert looks < 50


async def test_an_answer_that_was_stopped_goes_on_where_it_ended(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings())
    source.say("half")
    await until(room, "streaming")
    await room.stop()
    await room.resume(Settings())
    source.say(" whole")
    source.end()
    assert (await until(room, "done")).turns[-1].answer.text == "half whole"
    assert source.requests[1].continue_final
    assert source.requests[1].messages[-1].text == "half"


async def test_a_chat_that_leaves_less_room_than_wished_gets_the_room_there_is(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings(sampling=Sampling(max_tokens=512)))
    source.fail(ContextOverflow("600 tokens and 512 for the answer are more than 1024"))
    source.say("short")
    source.end()
    assert (await until(room, "done")).turns[-1].answer.text == "short"
    assert [request.sampling.max_tokens for request in source.requests] == [512, None]


async def test_a_chat_that_does_not_fit_at_all_is_a_notice(room: Room, source: ToldSource) -> None:
    await room.ask("hello", (), "told", Settings(sampling=Sampling(max_tokens=512)))
    source.fail(ContextOverflow("too long with 512"))
    source.fail(ContextOverflow("too long"))
    notice = (await until(room, "failed")).turns[-1].answer.notice
    assert notice is not None
    assert (notice.code, notice.message) == ("ContextOverflow", "too long")
