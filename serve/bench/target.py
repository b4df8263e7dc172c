"""Where a load goes: any OpenAI-compatible address, asked directly, without retries that would hide a failure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Protocol, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp

from llava_core.chat_protocol import write_call
from llava_core.config import ClientTimings
from llava_core.errors import BadRequest, NoWorker, UnknownModel, WorkerLost, WorkerTimeout
from llava_core.types import Chunk, Request
from serve.answer_stream import read_answer
from serve.at_once import within
from serve.credentials import known_token
from serve.http_errors import error_from
from serve.http_session import HTTP_ERRORS, HttpSession

T = TypeVar("T")

_MOST_CONNECTIONS = 10_000


class Target(Protocol):
    """What answers requests: a server, or an engine in this process."""

    @property
    def model(self) -> str: ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]: ...


class HttpTarget:
    """One model at one address; `model` "" takes the first that `open` finds there."""

    def __init__(
        self, url: str, model: str = "", *, api_key: str | None = None, timings: ClientTimings | None = None
    ) -> None:
        self.url = check_url(url)
        self.model = model
        self._timings = timings or ClientTimings()
        api_key = api_key or known_token(url)
        self._http = HttpSession(
            connect_s=self._timings.connect_s,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            connections=_MOST_CONNECTIONS,
        )

    async def open(self) -> None:
        """Check that the model is there. Raises NoWorker, UnknownModel or what the server says."""
        try:
            answer = await self._http.send("GET", f"{self.url}/v1/models", limit_s=self._timings.control_s)
            try:
                body = await answer.read()
            finally:
                answer.close()
        except TimeoutError:
            raise WorkerTimeout(f"{self.url} did not answer within {self._timings.control_s:g} s") from None
        except (*HTTP_ERRORS, ValueError) as cause:
            raise NoWorker(f"{self.url} cannot be reached ({cause}); is the server running?") from None
        if answer.status != 200:
            raise error_from(answer.status, answer.headers, body, source=self.url)
        try:
            names = [str(card["id"]) for card in json.loads(body)["data"]]
        except (ValueError, TypeError, KeyError):
            raise NoWorker(f"what answers at {self.url} is no OpenAI-compatible server") from None
        if not names:
            raise NoWorker(f"{self.url} serves no model at the moment")
        if self.model and self.model not in names:
            raise UnknownModel(f"{self.url} does not serve {self.model!r}; it serves: {', '.join(names)}")
        self.model = self.model or names[0]

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        body = await asyncio.to_thread(write_call, request) if request.images else write_call(request)
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "X-Request-Id": request.id}
        try:
            answer = await self._wait(self._http.send("POST", f"{self.url}/v1/chat/completions", body, headers))
            try:
                if answer.status != 200:
                    said = await self._wait(answer.read())
                    raise error_from(answer.status, answer.headers, said, source=self.url)
                async with aclosing(read_answer(answer, self._wait)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            finally:
                answer.close()
        except TimeoutError as cause:
            raise WorkerTimeout(f"{self.url} was silent for too long ({type(cause).__name__})") from cause
        except aiohttp.ClientConnectorError as cause:
            raise NoWorker(f"{self.url} cannot be reached ({cause})") from cause
        except HTTP_ERRORS as cause:
            raise WorkerLost(f"the connection to {self.url} broke off ({cause!r})") from cause

    async def _wait(self, step: Awaitable[T]) -> T:
        return await within(lambda: asyncio.timeout(self._timings.first_token_s), step)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()


def check_url(url: str) -> str:
    """The address without a closing /v1 or slash. Raises BadRequest."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise BadRequest(f"{url!r} is no address; write one like http://127.0.0.1:21002", param="URL")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
