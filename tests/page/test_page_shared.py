"""A shared chat as a page: readable by whoever has the link, safe whatever was said in it, gone when withdrawn."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.applications import Starlette

from llava_core.errors import BadRequest, Unauthorized
from serve.page import tending
from serve.page.actions import Rooms
from serve.page.shared import routes
from tests.page.test_page_actions import act, picture
from tests.page.test_page_history import ME, ROOM, YOU, Start, start  # noqa: F401 (a fixture)


@pytest.fixture
async def rooms(start: Start) -> Rooms:  # noqa: F811
    return await start()


@pytest.fixture
async def reader(rooms: Rooms) -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=routes(rooms.history))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page") as client:
        yield client


async def share(rooms: Rooms) -> str:
    return (await tending.tend(rooms, {"do": "share", "owner": ME, "id": ROOM}))["token"]


async def test_whoever_has_the_link_reads_the_chat_and_its_pictures(
    rooms: Rooms, reader: httpx.AsyncClient, tmp_path: Path
) -> None:
    claim = picture(tmp_path / "uploads-0", "cat.png", (64, 48))
    await act(rooms, "ask", ROOM, owner=ME, text="What <b>is</b> it?", pictures=[claim], model="echo")
    token = await share(rooms)
    await act(rooms, "ask", ROOM, owner=ME, text="said later", model="echo")
    answer = await reader.get(f"/shared/{token}")
    assert answer.status_code == 200
    assert "What &lt;b&gt;is&lt;/b&gt; it?" in answer.text
    assert "I received 1 turn and 1 image." in answer.text
    assert "said later" not in answer.text
    assert ROOM not in answer.text
    assert (answer.headers["cache-control"], answer.headers["x-robots-tag"]) == ("no-store", "noindex")
    image = await reader.get(f"/shared/{token}/0")
    assert image.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(image.content)).size == (64, 48)
    assert (await reader.get(f"/shared/{token}/1")).status_code == 404


async def test_a_withdrawn_link_and_a_guessed_one_show_nothing(rooms: Rooms, reader: httpx.AsyncClient) -> None:
    await act(rooms, "ask", ROOM, owner=ME, text="a secret", model="echo")
    token = await share(rooms)
    await tending.tend(rooms, {"do": "withdraw", "owner": ME, "id": ROOM})
    for address in (f"/shared/{token}", "/shared/guess", f"/shared/{ROOM}", f"/shared/{token}/0"):
        answer = await reader.get(address)
        assert answer.status_code == 404
        assert "secret" not in answer.text


async def test_only_the_owner_shares_renames_and_deletes(rooms: Rooms) -> None:
    await act(rooms, "ask", ROOM, owner=ME, text="mine", model="echo")
    for message in ({"do": "share"}, {"do": "rename", "title": "x"}, {"do": "delete"}, {"do": "withdraw"}):
        with pytest.raises(Exception, match="not there"):
            await tending.tend(rooms, {**message, "owner": YOU, "id": ROOM})
    with pytest.raises(Exception, match="no key"):
        await tending.tend(rooms, {"do": "delete all", "owner": "short"})
    assert (await tending.tend(rooms, {"do": "delete all", "owner": YOU}))["deleted"] == 0
    (row,) = (await tending.listed(rooms, {"owner": ME}))["chats"]
    assert (row["title"], row["running"]) == ("mine", False)


async def test_an_exported_comparison_is_brought_in_as_another_with_all_its_columns(
    rooms: Rooms, tmp_path: Path
) -> None:
    claim = picture(tmp_path / "uploads-0", "cat.png", (64, 48))
    columns = [f"column-{slot}" + "c" * 20 for slot in range(2)]
    for room, system in zip(columns, ("Be brief.", "Be kind."), strict=True):
        settings = {"system": system}
        await act(rooms, "ask", room, owner=ME, text="What is it?", pictures=[claim], model="echo", settings=settings)
    text = await rooms.export({"rooms": columns, "owner": ME, "kind": "json"})
    new = "n" * 32
    done = await tending.tend(rooms, {"do": "import", "owner": YOU, "id": new, "name": "it.json", "text": text})
    (row,) = (await tending.listed(rooms, {"owner": YOU}))["chats"]
    assert (row["id"], [column["id"] for column in row["columns"]]) == (new, done["columns"])
    for room, system in zip(done["columns"], ("Be brief.", "Be kind."), strict=True):
        view = await act(rooms, "ask", room, owner=YOU, text="And now?", model="echo", settings={"system": system})
        assert "I received 3 turns and 1 image." in view["turns"][-1]["answer"]["text"]
        assert view["settings"]["system"] == system


async def test_a_comparison_as_markdown_has_the_answers_below_each_question(rooms: Rooms, tmp_path: Path) -> None:
    claim = picture(tmp_path / "uploads-0", "cat.png", (64, 48))
    columns = [f"column-{slot}" + "c" * 20 for slot in range(3)]
    for room in columns:
        await act(rooms, "ask", room, owner=ME, text="What is it?", pictures=[claim], model="echo")
    await act(rooms, "ask", columns[1], owner=ME, text="Only B?", model="echo")
    text = await rooms.export({"rooms": columns, "owner": ME, "kind": "markdown"})
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0].startswith("# Comparison of ")
    assert headings[1:] == ["## Question", "## A: echo", "## B: echo", "## C: echo", "## Question", "## B: echo"]
    assert text.count("](data:") + text.count("]: data:") == 1
    message = {"do": "import", "owner": ME, "id": "n" * 32, "name": "it.md", "text": text}
    with pytest.raises(BadRequest, match="bring in its JSON"):
        await tending.tend(rooms, message)


async def test_nobody_exports_anothers_columns(rooms: Rooms) -> None:
    await act(rooms, "ask", ROOM, owner=ME, text="mine", model="echo")
    with pytest.raises(Unauthorized):
        await rooms.export({"rooms": [ROOM], "owner": YOU, "kind": "json"})


async def test_an_exported_chat_is_brought_in_as_another_and_kept(rooms: Rooms, tmp_path: Path) -> None:
    claim = picture(tmp_path / "uploads-0", "cat.png", (64, 48))
    await act(rooms, "ask", ROOM, owner=ME, text="What is it?", pictures=[claim], model="echo")
    await act(rooms, "edit", ROOM, owner=ME, turn="t1", text="And without?", model="echo")
    text = await rooms.export({"room": ROOM, "owner": ME, "kind": "json"})
    new = "n" * 32
    await tending.tend(rooms, {"do": "import", "owner": YOU, "id": new, "name": "chat.json", "text": text})
    (row,) = (await tending.listed(rooms, {"owner": YOU}))["chats"]
    assert (row["id"], row["title"]) == (new, "And without?")
    shown = (await act(rooms, "open", new, owner=YOU))["turns"][0]["id"]
    view = await act(rooms, "show wording", new, owner=YOU, turn=shown, shown=0)
    assert view["turns"][0]["text"] == "What is it?"
    view = await act(rooms, "ask", new, owner=YOU, text="And now?", model="echo")
    assert "1 image (64x48)" in view["turns"][-1]["answer"]["text"]


async def test_the_database_gone_a_link_says_so(rooms: Rooms, reader: httpx.AsyncClient) -> None:
    rooms.history.close()
    keeper = rooms.history._keeper
    assert keeper is not None
    keeper._state = type(keeper._state)(trouble="this server's disk is full")
    answer = await reader.get("/shared/anything")
    assert answer.status_code == 503
    assert "disk is full" in answer.text
