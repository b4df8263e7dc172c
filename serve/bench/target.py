"""Where a load goes: any OpenAI-compatible address, asked directly, without retries that would hide a failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Protocol, Self
from urllib.parse import urlsplit

import httpx
from httpx_sse import EventSource, SSEError

from llava_core.chat_events import read_chunks
from llava_core.chat_protocol import write_call
from llava_core.config import ClientTimings
from llava_core.errors import BadRequest, NoWorker, UnknownModel, WorkerLost, WorkerTimeout
from llava_core.types import Chunk, Request
from serve.http_errors import error_from

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
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            limits=httpx.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=_MOST_CONNECTIONS),
            timeout=httpx.Timeout(
                self._timings.between_tokens_s,
                read=self._timings.first_token_s,
                connect=self._timings.connect_s,
                pool=self._timings.first_token_s,
            ),
            trust_env=False,
        )

    async def open(self) -> None:
        """Check that the model is there. Raises NoWorker, UnknownModel or what the server says."""
        try:
            answer = await self._http.get(f"{self.url}/v1/models", timeout=self._timings.control_s)
        except httpx.TimeoutException:
            raise WorkerTimeout(f"{self.url} did not answer within {self._timings.control_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as cause:
            raise NoWorker(f"{self.url} cannot be reached ({cause}); is the server running?") from None
        if answer.status_code != 200:
            raise error_from(answer.status_code, answer.headers, answer.content, source=self.url)
        try:
            names = [str(card["id"]) for card in answer.json()["data"]]
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
            async with self._http.stream(
                "POST", f"{self.url}/v1/chat/completions", content=body, headers=headers
            ) as answer:
                if answer.status_code != 200:
                    raise error_from(answer.status_code, answer.headers, await answer.aread(), source=self.url)
                async with aclosing(_event_data(answer)) as events, aclosing(read_chunks(events)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except httpx.ConnectError as cause:
            raise NoWorker(f"{self.url} cannot be reached ({cause})") from cause
        except httpx.TimeoutException as cause:
            raise WorkerTimeout(f"{self.url} was silent for too long ({type(cause).__name__})") from cause
        except (httpx.HTTPError, SSEError) as cause:
            raise WorkerLost(f"the connection to {self.url} broke off ({cause!r})") from cause

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


async def _event_data(answer: httpx.Response) -> AsyncGenerator[str]:
    async with aclosing(EventSource(answer).aiter_sse()) as events:
        async for event in events:
            yield event.data
