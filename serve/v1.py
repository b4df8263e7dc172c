"""The OpenAI-compatible routes, over anything that lists models and streams answers: one engine or a whole pool."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Protocol

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llava_core.chat_protocol import MAX_USER_CHARS, ChatCall, read_call
from llava_core.config import RequestLimits, ServerLimits
from llava_core.errors import LlavaError, UnknownModel
from llava_core.types import Chunk, Request
from serve import tracing
from serve.chat_answer import ChatAnswer
from serve.deadline import with_deadline
from serve.described import CHAT
from serve.gate import CONTROL
from serve.http_frame import Endpoint
from serve.metrics import Metrics
from serve.protocol import ModelCard, write_model, write_models
from serve.several import several

CHAT_PATH = "/v1/chat/completions"
_LARGE_BYTES = 512 * 1024


class Source(Protocol):
    """Where answers come from. A `Client` is one."""

    async def models(self) -> tuple[ModelCard, ...]: ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]: ...


def v1_routes(
    source: Source,
    *,
    limits: RequestLimits | None = None,
    server: ServerLimits | None = None,
    metrics: Metrics | None = None,
) -> APIRouter:
    """`/v1/models`, `/v1/models/NAME` and `/v1/chat/completions`."""
    limits, server = limits or RequestLimits(), server or ServerLimits()
    router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])
    created = int(time.time())

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        return write_models(await source.models(), created)

    @router.get("/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        cards = await source.models()
        for card in cards:
            if card.info.name == name:
                return write_model(card, created)
        running = ", ".join(card.info.name for card in cards) or "none"
        raise UnknownModel(f"no worker serves {name[:200]!r}; running: {running}", param="model")

    router.post("/chat/completions", **CHAT)(chat_endpoint(source, limits=limits, server=server, metrics=metrics))
    return router


def chat_endpoint(
    source: Source,
    *,
    limits: RequestLimits | None = None,
    server: ServerLimits | None = None,
    metrics: Metrics | None = None,
    on_failure: Callable[[LlavaError], None] | None = None,
    refusal: Callable[[int], LlavaError | None] = lambda answers: None,
) -> Endpoint:
    """What answers at `CHAT_PATH`. `on_failure` learns of answers that ended with an error. What `refusal` gives is
    told before anything of a request is read, since megabytes of pictures cost time that running answers need; and once
    more where the request turns out to want several answers. Each of them counts as a request of its own, and a
    controller asks a worker for each."""
    limits, server = limits or RequestLimits(), server or ServerLimits()
    metrics = metrics or Metrics(lambda: ())

    async def complete_chat(http: HttpRequest) -> Response:
        metrics.received()
        try:
            _raise(refusal(1))
            call = await read_chat(http, limits)
            if call.n > 1:
                _raise(refusal(call.n))
                await http.scope["more_places"](http.scope, call.n - 1)
            request = with_deadline(owned(call.request, http), http.headers)
            call = replace(call, request=request)
        except (LlavaError, HTTPException):
            metrics.rejected()
            raise
        except BaseException:
            metrics.left()
            raise
        parent = tracing.parent_of(http.headers)
        span = tracing.Span("chat", parent=parent, kind="server", attributes=tracing.about(request))
        request = replace(request, trace=span.traceparent)
        watched = metrics.watch(request.model)
        chunks = source.stream(request) if call.n == 1 else several(source.stream, request, call.n)
        return ChatAnswer(call, chunks, server, watched, on_failure, span)

    return complete_chat


def _raise(error: LlavaError | None) -> None:
    if error is not None:
        raise error


def owned(request: Request, http: HttpRequest) -> Request:
    """What a key's holder calls a user is theirs alone, and so is what somebody without a key does at their address;
    our own processes say whose request it is."""
    caller = http.scope.get("caller", "")
    if caller == CONTROL:
        return request
    owner = f"{caller or http.scope.get('address', '')}/{request.owner}"
    if len(owner) > MAX_USER_CHARS:
        owner = hashlib.sha256(owner.encode()).hexdigest()
    return replace(request, owner=owner)


async def read_chat(http: HttpRequest, limits: RequestLimits) -> ChatCall:
    """The chat in a request's body. Raises BadRequest."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps web pages of strangers from sending chats with a plain form.
        raise HTTPException(415, "send the chat as JSON, with the header Content-Type: application/json")
    # Not `http.body()`, which would keep the bytes for as long as the answer takes, nor pieces that are joined, which
    # would be there twice.
    body = bytearray()
    async for piece in http.stream():
        body += piece
    request_id = str(http.scope["request_id"])
    if len(body) < _LARGE_BYTES:
        return read_call(body, limits=limits, request_id=request_id)
    # Megabytes of pictures are read in a thread, so that running streams go on meanwhile.
    return await asyncio.to_thread(read_call, body, limits=limits, request_id=request_id)
