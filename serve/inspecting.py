"""A look into a model over HTTP: what it makes of a chat, and where in the pictures an answer looked.

The bodies are those of chats, so that everything that bounds a chat bounds a look. The answer that is looked at travels
as one that was begun: `continue_token_ids` with its text at the end of the chat.
"""

from __future__ import annotations

from typing import Protocol

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llava_core.config import RequestLimits
from llava_core.errors import BadRequest
from llava_core.inspection import SeenAttention, SeenPrompt
from llava_core.types import Request
from serve.remote_inspector import ATTENTION, ATTENTION_PATH, PROMPT, PROMPT_PATH
from serve.v1 import owned, read_chat

_MOST_DIGITS = 9


class Inspected(Protocol):
    """What can be looked into: a worker's engine, or the one among many that serves the model."""

    async def look(self, request: Request) -> SeenPrompt: ...

    async def attend(self, request: Request, first: int, count: int) -> SeenAttention: ...


def inspect_routes(source: Inspected, *, limits: RequestLimits | None = None) -> APIRouter:
    """`/v1/inspect/prompt`, and `/v1/inspect/attention?first=3&count=2` for two tokens of the answer."""
    limits = limits or RequestLimits()
    router = APIRouter(tags=["What a model sees"])

    @router.post(PROMPT_PATH)
    async def look(http: HttpRequest) -> Response:
        return _answer(PROMPT.dump_json(await source.look(await _request(http, limits))))

    @router.post(ATTENTION_PATH)
    async def attend(http: HttpRequest) -> Response:
        first, count = _number(http, "first", 0), _number(http, "count", 1)
        return _answer(ATTENTION.dump_json(await source.attend(await _request(http, limits), first, count)))

    return router


async def _request(http: HttpRequest, limits: RequestLimits) -> Request:
    return owned((await read_chat(http, limits)).request, http)


def _number(http: HttpRequest, name: str, otherwise: int) -> int:
    given = http.query_params.get(name, str(otherwise))
    if not (given.isascii() and given.isdecimal() and len(given) <= _MOST_DIGITS):
        raise BadRequest(f"{name} must be the number of a token of the answer, not {given[:40]!r}", param=name)
    return int(given)


def _answer(body: bytes) -> Response:
    return Response(body, media_type="application/json")
