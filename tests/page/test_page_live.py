"""What the page's script asks and hears: one message each, one stream for all chats, errors in their class."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest

from llava_core.config import LiveLimits
from serve.gradio_web_server import make_context
from serve.page.context import PageContext
from serve.page.gate import PageFrame
from serve.page.live import routes
from serve.page.room import RoomTimings
from serve.quota import Quota
from serve.quotas import Quotas
from tests.faults.rig import until
from tests.page.sources import ToldSource

ROOMS = ("r" * 32, "s" * 32)
ME, YOU = "m" * 32, "y" * 32


@pytest.fixture
async def source() -> ToldSource:
    return ToldSource()


@pytest.fixture
async def context(source: ToldSource, tmp_path: Path) -> AsyncIterator[PageContext]:
    made = make_context(source, uploads=tmp_path, quotas=Quotas(address=Quota(at_once=1)))
    made.rooms._timings = RoomTimings(update_s=0.001, grace_s=0.05)
    yield made
    await made.rooms.aclose()


class Browser:
    """Asks and follows as `static/live.js` does, over an app in this process."""

    def __init__(self, context: PageContext, owner: str = ME, **limits: Any) -> None:
        self.let_in = True
        app = Starlette(routes=routes(context, self._is_let_in, LiveLimits(**limits)))
        self.app = app
        self.owner = owner
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")

    def _is_let_in(self, request: HttpRequest) -> bool:
        return self.let_in

    async def act(self, do: str, room: str = ROOMS[0], **more: Any) -> httpx.Response:
        message = {"do": do, "room": room, "owner": self.owner, "place": "chat", **more}
        return await self.http.post("/live/act", json=message)

    async def ask(self, room: str = ROOMS[0]) -> dict[str, Any]:
        return (await self.act("ask", room, text="hello", model="told")).json()

    def follow(self, *rooms: str) -> Stream:
        asked = [{"room": room, "owner": self.owner, "place": "chat"} for room in rooms]
        return Stream(self.app, "/live/follow", {"rooms": asked})

    def inspect(self) -> Stream:
        return Stream(self.app, "/live/inspect", {"model": "told", "text": "hello", "run": "one", "owner": self.owner})


class Stream:
    """A stream over ASGI, since httpx's transport hands out answers only once they are whole."""

    def __init__(self, app: Starlette, path: str, message: dict[str, Any]) -> None:
        self._app = app
        self._path = path
        self._body = json.dumps(message).encode()
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.left = asyncio.Event()
        self.status = 0

    async def __aenter__(self) -> Stream:
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left.set()
        await self._running

    async def next(self) -> Any:
        """What is told next; None at the end."""
        async with asyncio.timeout(60):
            return await self.heard.get()

    async def _run(self) -> None:
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": self._body}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            for event in message.get("body", b"").split(b"\n\n"):
                if event.startswith(b"data: "):
                    self.heard.put_nowait(json.loads(event[6:]))
                elif event:
                    self.heard.put_nowait(event)

        scope = {"type": "http", "method": "POST", "path": self._path, "headers": [], "query_string": b""}
        await self._app({**scope, "client": ("127.0.0.1", 1)}, receive, send)
        self.heard.put_nowait(None)


async def test_a_growing_answer_comes_as_what_is_new_of_it(context: PageContext, source: ToldSource) -> None:
    browser = Browser(context)
    asked = await browser.ask()
    assert (asked["running"], asked["turns"][0]["answer"]["state"]) == (True, "waiting")
    async with browser.follow(ROOMS[0]) as stream:
        assert (await stream.next())["turns"][0]["answer"]["state"] == "waiting"
        source.say("One paragraph.\n\nAnd")
        blocks = (await stream.next())["turns"][0]["answer"]["blocks"]
        source.say(" another")
        grown = await stream.next()
        assert (grown["from"], grown["blocks"]) == (1, ["<p>And another</p>\n"])
        assert grown.keys() == {"room", "born", "revision", "from", "blocks"}
        blocks[grown["from"] :] = grown["blocks"]
        source.end()
        done = await stream.next()
        assert done["turns"][0]["answer"]["blocks"] == blocks
        assert (done["turns"][0]["answer"]["text"], done["running"]) == ("One paragraph.\n\nAnd another", False)
        assert await stream.next() is None


async def test_a_rating_of_another_answer_does_not_get_lost_while_one_grows(
    context: PageContext, source: ToldSource
) -> None:
    browser = Browser(context)
    first = (await browser.ask())["turns"][0]["answer"]["id"]
    async with browser.follow(ROOMS[0]) as stream:
        source.end()
        while await stream.next():
            pass
    await browser.ask()
    async with browser.follow(ROOMS[0]) as stream:
        source.say("half")
        while (told := await stream.next())["turns"][-1]["answer"]["state"] == "waiting":
            pass
        await browser.act("rate", answer=first, rating="like")
        while (told := await stream.next()).get("turns") is None:
            pass
        assert told["turns"][0]["answer"]["rating"] == "like"
        source.end()


async def test_one_stream_has_all_chats_of_a_tab_and_ends_with_the_last_of_them(
    context: PageContext, source: ToldSource
) -> None:
    context.quotas._address = Quota()
    browser = Browser(context)
    for room in ROOMS:
        await browser.ask(room)
    async with browser.follow(*ROOMS) as stream:
        source.say("hello")
        source.end()
        source.end()
        ended: set[str] = set()
        while told := await stream.next():
            if told.get("running") is False:
                ended.add(told["room"])
        assert ended == set(ROOMS)


async def test_who_leaves_the_stream_frees_the_slot(context: PageContext, source: ToldSource) -> None:
    browser = Browser(context)
    await browser.ask()
    async with browser.follow(ROOMS[0]) as stream:
        source.say("half")
        await stream.next()
    async with asyncio.timeout(60):
        await source.left.wait()


async def test_an_address_that_has_its_share_is_told_so_beside_the_question(
    context: PageContext, source: ToldSource
) -> None:
    browser = Browser(context)
    await browser.ask()
    await browser.ask(ROOMS[1])
    async with browser.follow(ROOMS[1]) as stream:
        while (told := await stream.next())["running"]:
            pass
        assert told["turns"][0]["answer"]["notice"]["code"] == "Overloaded"


async def test_an_inspected_answer_has_a_stream_of_its_own_and_a_place_in_the_share(
    context: PageContext, source: ToldSource
) -> None:
    browser = Browser(context)
    async with browser.inspect() as stream, browser.inspect() as refused:
        source.say("half")
        told = await stream.next()
        assert (told["run"], told["state"], told["text"]) == ("one", "streaming", "half")
        told = await refused.next()
        assert (told["run"], told["state"]) == ("one", "failed")
        assert "at once" in told["error"]
        source.end()
        assert (await stream.next())["state"] == "done"
        assert await stream.next() is None
    async with browser.inspect() as stream:
        source.say("half")
        await stream.next()
    async with asyncio.timeout(60):
        await source.left.wait()


async def test_behind_a_login_a_share_is_a_persons_though_many_have_one_address(
    context: PageContext, source: ToldSource
) -> None:
    context.quotas._key = Quota(at_once=1)
    for name, owner, room in (("ann", ME, ROOMS[0]), ("bob", YOU, ROOMS[1])):
        browser = Browser(context, owner)
        frame = PageFrame(browser.app, context.uploads, local=False, login_of=lambda _, name=name: name)
        browser.http = httpx.AsyncClient(transport=httpx.ASGITransport(frame), base_url="http://page")
        await browser.ask(room)
    await until(lambda: len(source.requests) == 2)
    more = "t" * 32
    await browser.ask(more)
    async with browser.follow(more) as stream:
        while (told := await stream.next())["running"]:
            pass
        assert told["turns"][0]["answer"]["notice"]["message"].startswith("The key 'bob' may have 1 request")


async def test_what_cannot_be_done_is_refused_in_its_class(context: PageContext) -> None:
    browser = Browser(context)
    refused = await browser.act("dance")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BadRequest")
    assert (await browser.http.post("/live/act", content=b"[")).status_code == 400
    for rooms in ([], ["x"], "x", None, [{}] * 200):
        assert (await browser.http.post("/live/follow", json={"rooms": rooms})).status_code == 400
    other = Browser(context, YOU)
    refused = await other.act("open")
    assert (refused.status_code, refused.json()["error"]["param"]) == (401, "room")
    async with other.follow(ROOMS[0]) as stream:
        assert (await stream.next())["error"]["code"] == "Unauthorized"
        assert await stream.next() is None


async def test_who_is_not_logged_in_does_and_hears_nothing(context: PageContext) -> None:
    browser = Browser(context)
    browser.let_in = False
    assert (await browser.act("open")).json()["error"]["param"] == "login"
    for stream in (browser.follow(ROOMS[0]), browser.inspect()):
        async with stream:
            await stream.next()
        assert stream.status == 401


async def test_a_long_wait_shows_signs_of_life(context: PageContext) -> None:
    browser = Browser(context, ping_s=0.01)
    await browser.ask()
    async with browser.follow(ROOMS[0]) as stream:
        await stream.next()
        assert await stream.next() == b": nothing new"


async def test_no_address_takes_all_streams(context: PageContext, source: ToldSource) -> None:
    browser = Browser(context, streams_each=1)
    await browser.ask()
    elsewhere = httpx.ASGITransport(browser.app, client=("5.6.7.8", 1))
    async with (
        browser.follow(ROOMS[0]) as stream,
        httpx.AsyncClient(transport=elsewhere, base_url="http://page") as http,
    ):
        await stream.next()
        following = {"rooms": [{"room": ROOMS[0], "owner": ME, "place": "chat"}]}
        refused = await browser.http.post("/live/follow", json=following)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "Overloaded")
        reading = asyncio.create_task(http.post("/live/follow", json=following))
        source.say("hello")
        source.end()
        assert (await reading).status_code == 200


async def test_more_streams_than_there_may_be_are_refused_for_a_moment(context: PageContext) -> None:
    browser = Browser(context, streams=1)
    await browser.ask()
    async with browser.follow(ROOMS[0]) as stream:
        await stream.next()
        refused = await browser.http.post("/live/follow", json={"rooms": [{"room": ROOMS[0], "owner": ME}]})
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "2")
