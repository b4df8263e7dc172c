"""What every HTTP request passes first: an id of its own, a bound on its body, and an answer even when code breaks."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_core.config import ServerLimits
from llava_core.errors import EngineFailure, LlavaError
from serve.error_handlers import error_response, http_error_response
from serve.gate import Gate
from serve.quotas import Quotas

log = logging.getLogger(__name__)

_CLOSE = {"Connection": "close"}
_BUSY = {"Connection": "close", "Retry-After": "1"}
_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


Endpoint = Callable[[HttpRequest], Awaitable[Response]]


def frame(
    app: FastAPI,
    max_body_bytes: int,
    limits: ServerLimits | None = None,
    *,
    direct: Mapping[str, Endpoint] | None = None,
    gate: Gate | None = None,
    quotas: Quotas | None = None,
) -> None:
    """Put the frame around an app, with `gate` and `quotas` before everything in it. `direct` are routes of its own, by
    path, that are asked for with every answer: a POST to one of them is spared the way through the others."""
    shortcuts = {path: Direct(endpoint) for path, endpoint in (direct or {}).items()}
    app.state.bodies = Bodies()
    app.add_middleware(
        HttpFrame,
        max_body_bytes=max_body_bytes,
        limits=limits or ServerLimits(),
        gate=gate or Gate(),
        quotas=quotas or Quotas(),
        shortcuts=shortcuts,
        bodies=app.state.bodies,
    )


async def _take_more(held: AsyncExitStack, quotas: Quotas, scope: Scope, more: int) -> None:
    """So many places more for a request that has one, until its answer's end."""
    await held.enter_async_context(quotas.place(scope, more))


class Bodies:
    """The waits for requests that are still on their way, which a server that stops does not go on with."""

    def __init__(self) -> None:
        self.given_up = False
        self._waits: set[asyncio.Timeout] = set()

    @contextmanager
    def waiting(self, until: float) -> Generator[asyncio.Timeout]:
        wait = asyncio.timeout_at(until)
        self._waits.add(wait)
        try:
            yield wait
        finally:
            self._waits.discard(wait)

    def give_up(self) -> None:
        """Refuse them: whoever stops waits for answers only."""
        self.given_up = True
        for wait in self._waits:
            if wait.when() is not None and not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())


@dataclass
class HttpFrame:
    """ASGI middleware. The id is the caller's `X-Request-Id` where that is harmless, and goes back in the answer.
    `max_body_bytes` is for `/v1`, where the pictures are."""

    app: ASGIApp
    max_body_bytes: int
    limits: ServerLimits
    gate: Gate = field(default_factory=Gate)
    quotas: Quotas = field(default_factory=Quotas)
    shortcuts: Mapping[str, ASGIApp] = field(default_factory=dict[str, ASGIApp])
    held_bytes: int = 0
    bodies: Bodies = field(default_factory=lambda: Bodies())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _GOOD_ID.fullmatch(given) else f"chatcmpl-{uuid.uuid4().hex}"
        scope["request_id"] = request_id
        most = self.most_at(scope["path"])
        length = headers.get("content-length", "")
        empty = length in ("", "0") and "transfer-encoding" not in headers
        body = _Body(most, refused=length.isdecimal() and int(length[:20]) > most, complete=empty)
        started = False

        async def send_framed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                fields = MutableHeaders(scope=message)
                fields["X-Request-Id"] = request_id
                fields["X-Content-Type-Options"] = "nosniff"
            elif body.is_left and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self._take_the_rest(receive, body)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        app = self.shortcuts.get(scope["path"], self.app) if scope["method"] == "POST" else self.app
        try:
            async with AsyncExitStack() as held:
                try:
                    scope["caller"] = caller = self.gate.admit(scope)
                    if not caller:
                        scope["address"] = self.quotas.address_of(scope)
                    await held.enter_async_context(self.quotas.place(scope))
                    # How many answers are wanted stands in the body, which is not read yet.
                    scope["more_places"] = partial(_take_more, held, self.quotas)
                except LlavaError as error:
                    await error_response(error)(scope, receive, send_framed)
                    return
                await app(scope, self._bounded(receive, body), send_framed)
        except ClientDisconnect:
            log.info("request %s: the caller went away before its body was here", request_id)
        except Exception:
            log.exception("request %s to %s failed", request_id, ascii(scope["path"][:200]))
            if started:
                raise
            failure = EngineFailure(
                f"something broke in the server; its log tells more under {request_id}", request_id=request_id
            )
            await error_response(failure)(scope, receive, send_framed)
        finally:
            self.held_bytes -= body.bytes

    def most_at(self, path: str) -> int:
        """How many bytes a body for `path` may have."""
        return self.max_body_bytes if path.startswith("/v1/") else self.limits.max_control_body_bytes

    def _bounded(self, receive: Receive, body: _Body) -> Receive:
        """The same body, cut off where it grows too long or comes too slowly."""
        began = asyncio.get_running_loop().time()

        async def bounded() -> Message:
            if body.refused:
                raise _too_large(body.most)
            if body.complete:
                return await receive()
            until = began + self.limits.body_s + body.bytes / self.limits.body_bytes_per_s
            try:
                with self.bodies.waiting(until) as wait:
                    async with wait:
                        message = await receive()
            except TimeoutError:
                body.given_up = True
                if self.bodies.given_up:
                    raise HTTPException(503, "this server is shutting down; send the request again", _BUSY) from None
                raise HTTPException(408, "the request's body came too slowly; send it again", _CLOSE) from None
            size = len(message.get("body", b""))
            body.bytes += size
            self.held_bytes += size
            body.complete = not message.get("more_body", False)
            if body.bytes > body.most:
                body.refused = True
                raise _too_large(body.most)
            if self.held_bytes > self.limits.max_held_body_bytes:
                body.refused = True
                raise HTTPException(429, "too many large requests at once; try again in a moment", _BUSY)
            return message

        return bounded

    async def _take_the_rest(self, receive: Receive, body: _Body) -> None:
        """What the caller still sends after it was refused: most read an answer only when they are through, and
        closing on them would destroy it."""
        until = asyncio.get_running_loop().time() + (0 if self.bodies.given_up else self.limits.body_s)
        try:
            with self.bodies.waiting(until) as wait:
                async with wait:
                    while not body.complete:
                        body.complete = not (await receive()).get("more_body", False)
        except TimeoutError:
            log.info("a caller went on sending after its request was refused")


@dataclass(frozen=True)
class Direct:
    """An endpoint as an app; what it raises is answered as on any other route."""

    endpoint: Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HttpRequest(scope, receive, send)
        try:
            response = await self.endpoint(request)
        except LlavaError as error:
            response = error_response(error)
        except HTTPException as error:
            response = http_error_response(request.method, request.url.path, error)
        await response(scope, receive, send)


@dataclass
class _Body:
    """How much of a request's body may come and has come."""

    most: int
    refused: bool = False
    bytes: int = 0
    complete: bool = False
    given_up: bool = False

    @property
    def is_left(self) -> bool:
        """Whether the answer comes before its end: it was refused, or nobody cared to read it."""
        return self.refused or not (self.complete or self.given_up)


def _too_large(most: int) -> HTTPException:
    size = f"{most // 2**20} MiB" if most >= 2**20 else f"{most} bytes"
    sentence = f"the request's body is larger than {size}, the most that is taken; send fewer or smaller pictures"
    return HTTPException(413, sentence, _CLOSE)
