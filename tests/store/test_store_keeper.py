"""The keeper writes in the background, waits out a failing database, and says so in words and numbers."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import event, func, select, text

from llava_core.config import StoreLimits
from serve.store import conversations as kept
from serve.store import writing
from serve.store.database import Database
from serve.store.images import fetch_image
from serve.store.keeper import Keeper, StoreTrouble
from serve.store.records import KeptChat
from serve.store.tables import IMAGES
from tests.store.chats import ME, message, small_chat, with_picture

QUICK = StoreLimits(pause_s=0.005, retry_first_s=0.02, retry_most_s=0.05)


@pytest.fixture
def keep(url: str) -> Iterator[Callable[..., Keeper]]:
    """`keep(keep_days=3)` starts a keeper on the test's database."""
    made: list[Keeper] = []

    def start(database: Database | None = None, **options: object) -> Keeper:
        keeper = Keeper(database or Database(url), QUICK, **options)  # type: ignore[arg-type]
        keeper.start()
        made.append(keeper)
        return keeper

    yield start
    for keeper in made:
        keeper.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def settle(keeper: Keeper) -> None:
    """Everything that was noted is written."""
    keeper.do(lambda _: None).result(20)


def load(keeper: Keeper, id: str = "chat-1") -> KeptChat | None:
    settle(keeper)
    return keeper.read(lambda connection: kept.load(connection, id, ME))


def said_in(keeper: Keeper, chats: list[KeptChat]) -> list[str]:
    return [found.messages[1].text for made in chats if (found := load(keeper, made.id))]


def images(keeper: Keeper) -> int:
    return keeper.do(lambda connection: connection.scalar(select(func.count()).select_from(IMAGES)) or 0).result(20)


def drawn(folder: Path, name: str, colour: str = "teal") -> Path:
    Image.new("RGB", (8, 6), colour).save(folder / name)
    return folder / name


def test_the_latest_state_is_written_and_there_after_a_restart(keep: Callable[..., Keeper], url: str) -> None:
    first = keep()
    for said in ("I", "It", "It is", "It is a cat."):
        first.note("chat-1", lambda said=said: small_chat(said=said))
    first.close()
    assert load(keep()) == small_chat(said="It is a cat.")


def test_states_that_nobody_waited_for_are_never_made(keep: Callable[..., Keeper]) -> None:
    made: list[int] = []

    def make(number: int) -> KeptChat:
        made.append(number)
        return small_chat(said=str(number))

    keeper = keep()
    for number in range(20_000):
        keeper.note("chat-1", lambda number=number: make(number))
    found = load(keeper)
    assert found is not None
    assert found.messages[1].text == "19999"
    assert len(made) < 10_000


def test_the_same_picture_is_stored_once_and_goes_with_the_last_chat_that_has_it(
    keep: Callable[..., Keeper], tmp_path: Path
) -> None:
    keeper = keep()
    one, two = drawn(tmp_path, "one.png"), drawn(tmp_path, "two.png")
    keeper.note("a", lambda: with_picture(small_chat("a"), one))
    keeper.note("b", lambda: with_picture(small_chat("b"), two))
    settle(keeper)
    assert images(keeper) == 1
    sha256 = keeper.written.hash_of(str(one))
    assert sha256 == keeper.written.hash_of(str(two))
    found = load(keeper, "a")
    assert found is not None
    assert found.messages[0].pictures[0].sha256 == sha256
    keeper.do(lambda connection: kept.remove(connection, "a", ME)).result(20)
    assert images(keeper) == 1
    keeper.do(lambda connection: kept.remove(connection, "b", ME)).result(20)
    assert images(keeper) == 0


def test_a_file_that_is_no_picture_is_named_but_not_stored(keep: Callable[..., Keeper], tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>")
    keeper = keep()
    keeper.note("chat-1", lambda: with_picture(small_chat(), tmp_path / "page.png"))
    found = load(keeper)
    assert found is not None
    assert (found.messages[0].pictures[0].name, found.messages[0].pictures[0].sha256) == ("page.png", None)
    assert images(keeper) == 0


@pytest.mark.parametrize("originals", [False, True])
def test_where_a_picture_was_taken_is_stored_only_if_asked_for(
    keep: Callable[..., Keeper], tmp_path: Path, originals: bool
) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera of mine"
    file = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 6), "teal").save(file, exif=exif)
    keeper = keep(originals=originals)
    keeper.note("chat-1", lambda: with_picture(small_chat(), file))
    settle(keeper)
    sha256 = keeper.written.hash_of(str(file))
    assert sha256 is not None
    image = keeper.read(lambda connection: fetch_image(connection, sha256))
    assert image is not None
    assert (b"A camera of mine" in image.data) is originals
    assert (image.data == file.read_bytes()) is originals


def test_chats_older_than_the_days_they_are_kept_are_deleted_at_the_next_look(
    keep: Callable[..., Keeper], url: str
) -> None:
    first = keep(now=lambda: datetime.now(UTC) - timedelta(days=8))
    first.note("old", lambda: small_chat("old"))
    first.close()
    second = keep()
    second.note("new", lambda: small_chat("new"))
    second.close()
    third = keep(keep_days=7)
    until(lambda: load(third, "old") is None)
    assert load(third, "new") is not None


def test_a_chat_that_is_forgotten_before_it_was_written_never_is(keep: Callable[..., Keeper]) -> None:
    keeper = keep()
    settle(keeper)
    keeper.note("chat-1", lambda: small_chat())
    keeper.forget("chat-1")
    keeper.do(lambda connection: kept.remove(connection, "chat-1", ME)).result(20)
    assert load(keeper) is None


def test_growing_answers_are_written_together_and_with_nothing_but_their_texts(
    keep: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, picture = keep(), drawn(tmp_path, "a.png")
    chats = [with_picture(small_chat(f"chat-{number}", said="It"), picture) for number in range(3)]
    for made in chats:
        keeper.note(made.id, lambda made=made: made)
    settle(keeper)
    in_full: list[str] = []
    save = writing.save
    monkeypatch.setattr(
        writing, "save", lambda connection, chat, *rest: in_full.append(chat.id) or save(connection, chat, *rest)
    )
    grown = [replace(made, messages=(made.messages[0], replace(made.messages[1], text="It is"))) for made in chats]
    for made in grown:
        keeper.note(made.id, lambda made=made: made)
    settle(keeper)
    assert in_full == []
    assert said_in(keeper, grown) == ["It is"] * 3
    keeper.do(lambda connection: kept.remove(connection, "chat-1", ME)).result(60)
    for made in chats:
        keeper.note(made.id, lambda made=made: made)
    settle(keeper)
    assert "chat-1" in in_full
    assert said_in(keeper, chats) == ["It"] * 3


def test_one_chat_that_cannot_be_kept_is_counted_and_does_not_hold_up_the_others(keep: Callable[..., Keeper]) -> None:
    keeper = keep()
    keeper.note("bad", lambda: replace(small_chat("bad"), messages=(message("a2", "nowhere", "lost"),)))
    keeper.note("worse", lambda: (_ for _ in ()).throw(ValueError("no chat at all")))
    keeper.note("good", lambda: small_chat("good"))
    assert load(keeper, "good") is not None
    assert load(keeper, "bad") is None
    assert (keeper.state.given_up, keeper.state.trouble) == (2, "")
    keeper.note("worse", lambda: small_chat("worse"))
    settle(keeper)
    assert keeper.given_up == ("bad",)  # the other one is kept by now
    keeper.forget("bad")
    assert keeper.state.given_up == 0


def test_a_chat_deleted_by_another_server_is_written_anew_in_full(keep: Callable[..., Keeper]) -> None:
    keeper, other = keep(), keep()
    keeper.note("chat-1", lambda: small_chat())
    settle(keeper)
    other.do(lambda connection: kept.remove(connection, "chat-1", ME)).result(20)
    longer = replace(small_chat(), messages=(*small_chat().messages, message("t3", "a2", "And?")))
    keeper.note("chat-1", lambda: longer)
    found = load(keeper)
    assert found is not None
    assert found.messages == longer.messages


def test_a_lost_database_is_told_counted_and_made_good_once_it_is_back(
    keep: Callable[..., Keeper], url: str, tmp_path: Path
) -> None:
    file = drawn(tmp_path, "one.png")
    keeper = keep()
    keeper.note("chat-1", lambda: with_picture(small_chat(), file))
    settle(keeper)
    if url.startswith("sqlite"):
        folder = tmp_path / "kept"
        shutil.rmtree(folder)
        folder.write_text("in the way")
        back = folder.unlink
    else:
        import psycopg

        server, name = url.rsplit("/", 1)
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')  # type: ignore[call-overload]

        def back() -> None:
            with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]

    keeper.note("chat-2", lambda: with_picture(small_chat("chat-2"), file))
    until(lambda: keeper.state.failures > 1)
    state = keeper.state
    assert (state.unsaved, state.given_up) == (1, 0)
    assert "server" in state.trouble
    with pytest.raises(StoreTrouble, match="server"):
        keeper.do(lambda connection: kept.remove(connection, "chat-1", ME)).result(20)
    with pytest.raises(StoreTrouble):
        keeper.read(lambda connection: kept.load(connection, "chat-1", ME))
    back()
    until(lambda: not keeper.state.trouble)
    found = load(keeper, "chat-2")
    assert found is not None
    assert found.messages[0].pictures[0].sha256 is not None
    assert images(keeper) == 1


def test_a_full_disk_is_called_by_its_name_and_what_waited_is_written_when_there_is_room(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/chats.db")
    pages = [1_000_000]

    @event.listens_for(database._engine, "begin")
    def limit(connection: object) -> None:
        connection.connection.execute(f"PRAGMA max_page_count = {pages[0]}")  # type: ignore[attr-defined]

    keeper = Keeper(database, QUICK)
    keeper.start()
    try:
        keeper.note("chat-1", lambda: small_chat())
        settle(keeper)
        pages[0] = 1
        keeper.note("chat-1", lambda: small_chat(said="long " * 100_000))
        until(lambda: keeper.state.trouble != "")
        assert keeper.state.trouble == "this server's disk is full"
        assert keeper.state.unsaved == 1
        pages[0] = 1_000_000
        until(lambda: keeper.state.trouble == "")
        found = load(keeper)
        assert found is not None
        assert len(found.messages[1].text) == 500_000
    finally:
        keeper.close()


def test_a_database_of_a_newer_version_is_told_and_chats_are_written_once_it_can_be_used(
    keep: Callable[..., Keeper], url: str
) -> None:
    first = keep()
    settle(first)
    [here] = first.read(lambda connection: list(connection.scalars(text("SELECT version_num FROM alembic_version"))))
    set_version = text("UPDATE alembic_version SET version_num = :number")
    first.do(lambda connection: connection.execute(set_version, {"number": "9999"})).result(20)
    keeper = keep()
    keeper.note("chat-1", lambda: small_chat())
    until(lambda: "newer version" in keeper.state.trouble)
    assert keeper.state.unsaved == 1
    with pytest.raises(StoreTrouble, match="newer version"):
        keeper.read(lambda _: None)
    first.do(lambda connection: connection.execute(set_version, {"number": here})).result(20)
    until(lambda: keeper.state.trouble == "")
    assert load(keeper) is not None


def test_when_too_many_wait_the_one_that_waited_longest_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    keeper = Keeper(Database(f"sqlite:///{tmp_path}/file/chats.db"), replace(QUICK, max_unsaved=3))
    keeper.start()
    until(lambda: keeper.state.trouble != "")
    for number in range(5):
        keeper.note(str(number), lambda number=number: small_chat(str(number)))
    assert (keeper.state.unsaved, keeper.state.given_up) == (3, 2)
    (tmp_path / "file").unlink()
    until(lambda: keeper.state.trouble == "")
    assert [load(keeper, str(number)) is not None for number in range(5)] == [False, False, True, True, True]
    keeper.close()


def test_what_was_deleted_is_not_in_the_file_any_more(tmp_path: Path) -> None:
    keeper = Keeper(Database(f"sqlite:///{tmp_path}/chats.db"), QUICK)
    keeper.start()
    keeper.note("chat-1", lambda: small_chat(said="a very secret sentence"))
    settle(keeper)
    keeper.do(lambda connection: kept.remove(connection, "chat-1", ME)).result(20)
    keeper.close()
    with sqlite3.connect(tmp_path / "chats.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert all(b"very secret" not in file.read_bytes() for file in tmp_path.iterdir())


def test_two_servers_on_one_database_see_each_others_chats_and_neither_undoes_the_other(
    keep: Callable[..., Keeper], tmp_path: Path
) -> None:
    one, other = keep(), keep()
    file = drawn(tmp_path, "seen.png")
    one.note("chat-1", lambda: with_picture(small_chat(), file))
    other.note("chat-2", lambda: with_picture(small_chat("chat-2", said="It is a dog."), file))
    settle(one)
    settle(other)
    for keeper in (one, other):
        assert [load(keeper, id) is not None for id in ("chat-1", "chat-2")] == [True, True]
    # Both write at the same time, each in a chat that the other has read; the picture of both is there once.
    for round in range(20):
        one.note("chat-1", lambda said=f"one {round}": with_picture(small_chat(said=said), file))
        other.note("chat-2", lambda said=f"other {round}": with_picture(small_chat("chat-2", said=said), file))
    settle(one)
    settle(other)
    for keeper in (one, other):
        first, second = load(keeper, "chat-1"), load(keeper, "chat-2")
        assert first is not None
        assert second is not None
        assert (first.messages[1].text, second.messages[1].text) == ("one 19", "other 19")
        assert keeper.state.trouble == ""
    assert images(one) == 1
