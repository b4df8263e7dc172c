"""What every HTTP request passes first: an id of its own, a bound on its body, and an answer even when code breaks."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_core.config import ServerLimits
from llava_core.errors import EngineFailure
from serve.error_handlers import error_response, http_error_response

log = logging.getLogger(__name__)

_GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def frame(app: FastAPI, max_body_bytes: int, limits: ServerLimits | None = None) -> None:
    """Put the frame around an app."""
    app.add_middleware(HttpFrame, max_body_bytes=max_body_bytes, limits=limits or ServerLimits())


@dataclass
class HttpFrame:
    """ASGI middleware. The id is the caller's `X-Request-Id` where that is harmless, and goes back in the answer.
    `max_body_bytes` is for `/v1`, where the pictures are."""

    app: ASGIApp
    max_body_bytes: int
    limits: ServerLimits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _GOOD_ID.fullmatch(given) else f"chatcmpl-{uuid.uuid4().hex}"
        scope["request_id"] = request_id
        started = False

        async def send_framed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                fields = MutableHeaders(scope=message)
                fields["X-Request-Id"] = request_id
                fields["X-Content-Type-Options"] = "nosniff"
            await send(message)

        most = self.max_body_bytes if scope["path"].startswith("/v1/") else self.limits.max_control_body_bytes
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            await self._refuse(_too_large(most), scope, receive, send_framed)
            return
        try:
            await self.app(scope, self._bounded(receive, most), send_framed)
        except Exception:
            log.exception("request %s to %s failed", request_id, ascii(scope["path"][:200]))
            if started:
                raise
            failure = EngineFailure(
                f"something broke in the server; its log tells more under {request_id}", request_id=request_id
            )
            await error_response(failure)(scope, receive, send_framed)

    def _bounded(self, receive: Receive, most: int) -> Receive:
        """The same body, cut off where it grows too long or comes too slowly."""
        clock = asyncio.get_running_loop().time
        began, received, complete = clock(), 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                allowed = self.limits.body_s + received / self.limits.body_bytes_per_s
                async with asyncio.timeout_at(began + allowed):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, "the request's body came too slowly; send it again", {"Connection": "close"}
                ) from None
            received += len(message.get("body", b""))
            if received > most:
                raise _too_large(most)
            complete = not message.get("more_body", False)
            return message

        return bounded

    async def _refuse(self, error: HTTPException, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at once, then take what the caller still sends: most read an answer only when they are through,
        and closing on them would destroy it. Bounded by as much again as would have been allowed."""

        async def send_without_end(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await http_error_response(scope["method"], scope["path"], error)(scope, receive, send_without_end)
        left = self.max_body_bytes
        try:
            async with asyncio.timeout(self.limits.body_s):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            log.info("request %s went on sending after it was refused", scope["request_id"])
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_large(most: int) -> HTTPException:
    sentence = f"the request's body is larger than {most} bytes, the most that is taken; send fewer or smaller pictures"
    return HTTPException(413, sentence, {"Connection": "close"})
