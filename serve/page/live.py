"""What people do on the page goes to the server in one request each, and what is answered comes back in one stream.

`/live/act` does what a message says and answers with the chat as it is then. `/live/follow` streams the chats that it
is asked for, as server-sent events, until no answer is on its way in any of them: all chats of a browser tab in one
stream, because browsers open few connections to one server. `/live/inspect` streams one answer of the Inspect tab.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, cast

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llava_core.chat_events import sse
from llava_core.config import LiveLimits
from llava_core.errors import BadRequest, LlavaError, Overloaded, Unauthorized
from serve.error_handlers import error_response
from serve.page.context import PageContext
from serve.page.inspection import Inspections
from serve.page.messages import Message
from serve.page.room import Place

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_BUSY_RETRY_S = 2.0


class Followed(Protocol):
    """What a stream may be of."""

    def follow(self, message: Message, reader: str) -> AsyncIterator[dict[str, Any]]: ...

    def leave(self, reader: str) -> None: ...


class Conversations(Followed, Protocol):
    """What stands behind a pane: `Rooms`, or who keeps something of them to itself."""

    async def tell(self, message: Message, place: Place) -> dict[str, Any]: ...


@dataclass(frozen=True)
class _Inspected:
    """An answer of the Inspect tab, which is asked for by following it."""

    inspections: Inspections
    place: Place

    async def follow(self, message: Message, reader: str) -> AsyncIterator[dict[str, Any]]:
        try:
            async with self.place(), aclosing(cast("Any", self.inspections.ask(message))) as answers:
                async for shown in answers:
                    yield shown
        except LlavaError as error:
            yield self.inspections.refused(message, error)

    def leave(self, reader: str) -> None:
        pass


def routes(
    context: PageContext, is_let_in: Callable[[HttpRequest], bool], limits: LiveLimits | None = None
) -> list[Route]:
    """`is_let_in` says whether whoever asks may see the page at all."""
    limits = limits or LiveLimits()
    streams: dict[str, str] = {}

    def behind(message: Message) -> Conversations:
        return context.arena if message.get("place") == "arena" else context.rooms

    async def act(request: HttpRequest) -> Response:
        try:
            message = await _read(request, is_let_in)
            context.uploads.check(request, message)
            view = await behind(message).tell(message, lambda: context.quotas.place(request.scope))
        except LlavaError as error:
            return error_response(error)
        return JSONResponse(view, headers={"Cache-Control": "no-store"})

    async def follow(request: HttpRequest) -> Response:
        try:
            given = (await _read(request, is_let_in)).get("rooms")
            if not isinstance(given, list) or not all(isinstance(one, dict) for one in cast("list[Any]", given)):
                raise BadRequest("the page did not say which chats it follows; reload it", param="rooms")
            messages = cast("list[Message]", given)
            if not 1 <= len(messages) <= limits.rooms:
                raise BadRequest(f"a stream is of 1 to {limits.rooms} chats, not {len(messages)}", param="rooms")
            who = reader_at(request)
        except LlavaError as error:
            return error_response(error)
        return _Stream([(behind(message), message) for message in messages], streams, who, limits.ping_s)

    async def inspect(request: HttpRequest) -> Response:
        try:
            message = await _read(request, is_let_in)
            context.uploads.check(request, message)
            who = reader_at(request)
        except LlavaError as error:
            return error_response(error)
        answer = _Inspected(context.inspections, lambda: context.quotas.place(request.scope))
        return _Stream([(answer, message)], streams, who, limits.ping_s)

    def reader_at(request: HttpRequest) -> str:
        """Whose stream it would be. Raises Overloaded where there are too many."""
        who = str(request.scope.get("caller") or context.quotas.address_of(request.scope))
        if len(streams) >= limits.streams or Counter(streams.values())[who] >= limits.streams_each:
            raise Overloaded("too many people read along; the page tries again", retry_after=_BUSY_RETRY_S)
        return who

    ways = {"act": act, "follow": follow, "inspect": inspect}
    return [Route(f"/live/{name}", way, methods=["POST"]) for name, way in ways.items()]


class _Stream(Response):
    """Each chat is followed by a task of its own, so that none waits for another. Which chat an event is of stands in
    it; one that cannot be followed has its error there."""

    media_type = "text/event-stream"

    def __init__(
        self, followed: Sequence[tuple[Followed, Message]], streams: dict[str, str], who: str, ping_s: float
    ) -> None:
        """It is among the `streams` while it lasts, as that of `who`."""
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._followed = followed
        self._streams, self._who = streams, who
        self._ping_s = ping_s
        self._reader = uuid.uuid4().hex

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._streams[self._reader] = self._who
        tasks = {asyncio.create_task(self._follow(behind, message, send)) for behind, message in self._followed}
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while tasks and not leaving.done():
                done, _ = await asyncio.wait(
                    {*tasks, leaving}, timeout=self._ping_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done - {leaving}:
                    task.result()
                tasks -= done
                if not done:
                    await _send(send, b": nothing new\n\n")
            if not leaving.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            for task in (*tasks, leaving):
                task.cancel()
            await asyncio.wait({*tasks, leaving})
            for behind, _ in self._followed:
                behind.leave(self._reader)
            del self._streams[self._reader]

    async def _follow(self, behind: Followed, message: Message, send: Send) -> None:
        try:
            async with aclosing(cast("Any", behind.follow(message, self._reader))) as views:
                async for view in views:
                    await _send(send, sse(view))
        except LlavaError as error:
            await _send(send, sse({"room": message.get("room"), **error.to_body()}))


async def _send(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(request: HttpRequest, is_let_in: Callable[[HttpRequest], bool]) -> dict[str, Any]:
    if not is_let_in(request):
        raise Unauthorized("log in to this page first; reload it", param="login")
    try:
        message = json.loads(await request.body())
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise BadRequest("what the page sent is no JSON object; reload it")
    return cast("dict[str, Any]", message)
