"""A look into a model at another server: asks its worker what it makes of a chat, and where an answer looked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
from pydantic import TypeAdapter, ValidationError

from llava_core.chat_protocol import write_call
from llava_core.config import InspectLimits
from llava_core.errors import BadRequest, LlavaError, WorkerLost, WorkerTimeout
from llava_core.inspection import SeenAttention, SeenPrompt
from llava_core.types import Request
from serve.breaker import Breakers
from serve.http_errors import error_from
from serve.http_session import HTTP_ERRORS, HttpSession, read_piece

PROMPT_PATH = "/v1/inspect/prompt"
ATTENTION_PATH = "/v1/inspect/attention"

T = TypeVar("T")
Pick = Callable[[Request, list[str]], Awaitable[str]]

PROMPT = TypeAdapter(SeenPrompt)
ATTENTION = TypeAdapter(SeenAttention)


class RemoteInspector:
    """Asks the worker that `pick` names, and another one where that is lost."""

    def __init__(self, http: HttpSession, pick: Pick, breakers: Breakers, limits: InspectLimits | None = None) -> None:
        self._http = http
        self._breakers = breakers
        self._pick = pick
        self._limits = limits or InspectLimits()

    async def look(self, request: Request) -> SeenPrompt:
        return _read(PROMPT, await self._ask(PROMPT_PATH, request))

    async def attend(self, request: Request, first: int, count: int) -> SeenAttention:
        return _read(ATTENTION, await self._ask(f"{ATTENTION_PATH}?first={first}&count={count}", request))

    async def _ask(self, path: str, request: Request) -> bytes:
        body = await asyncio.to_thread(write_call, request, stream=False)
        address = await self._pick(request, [])
        try:
            async with asyncio.timeout(self._limits.answer_s):
                try:
                    return await self._ask_one(address, path, body, request)
                except WorkerLost:
                    return await self._ask_one(await self._pick(request, [address]), path, body, request)
        except TimeoutError:
            raise WorkerTimeout(
                f"the worker of {request.model!r} did not answer within {self._limits.answer_s:g} s; try again"
            ) from None

    async def _ask_one(self, address: str, path: str, body: bytes, request: Request) -> bytes:
        headers = {"Content-Type": "application/json", "X-Request-Id": request.id}
        with self._breakers.trying(address):
            try:
                answer = await self._http.send("POST", address + path, body, headers)
                if answer.status < 500:
                    # Said at once: while a worker is only tried, nobody else asks it.
                    self._breakers.succeeded(address)
                try:
                    data = bytearray()
                    while piece := await read_piece(answer):
                        data += piece
                        if len(data) > self._limits.max_answer_bytes:
                            raise WorkerLost("the worker said more than is read of it")
                finally:
                    answer.close()
            except HTTP_ERRORS as cause:
                if isinstance(cause, TimeoutError):
                    raise
                self._breakers.failed(address, at_once=isinstance(cause, aiohttp.ClientConnectorError))
                raise WorkerLost("the worker went away; try again", request_id=request.id) from cause
        if answer.status != 200:
            raise _failure(answer, bytes(data), request)
        return bytes(data)


def refusal(model: str) -> BadRequest:
    """For engines that cannot be looked into."""
    return BadRequest(
        f"{model!r} is run by an engine that does not tell what it sees; models of our own engine do", param="model"
    )


def _failure(answer: aiohttp.ClientResponse, body: bytes, request: Request) -> LlavaError:
    # Other servers have no such routes, and say so in words of their own.
    if answer.status in (404, 405) and b'"UnknownModel"' not in body:
        return refusal(request.model)
    return error_from(answer.status, answer.headers, body, source="the worker")


def _read(adapter: TypeAdapter[T], body: bytes) -> T:
    try:
        return adapter.validate_json(body)
    except ValidationError:
        raise WorkerLost("the worker's answer cannot be read; is it of another version?") from None
