"""The OpenAI-compatible routes, over anything that lists models and streams answers: one engine or a whole pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llava_core.chat_protocol import ChatCall, read_call
from llava_core.config import RequestLimits, ServerLimits
from llava_core.errors import UnknownModel
from llava_core.types import Chunk, Request
from serve.chat_answer import ChatAnswer
from serve.protocol import ModelCard, write_model, write_models
from serve.several import several

_LARGE_BYTES = 512 * 1024


class Source(Protocol):
    """Where answers come from. A `Client` is one."""

    async def models(self) -> tuple[ModelCard, ...]: ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]: ...


def v1_routes(source: Source, *, limits: RequestLimits | None = None, server: ServerLimits | None = None) -> APIRouter:
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

    @router.post("/chat/completions")
    async def complete_chat(http: HttpRequest) -> Response:
        call = await _read(http, limits)
        request = call.request
        chunks = source.stream(request) if call.n == 1 else several(source.stream, request, call.n)
        return ChatAnswer(call, chunks, server)

    return router


async def _read(http: HttpRequest, limits: RequestLimits) -> ChatCall:
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
