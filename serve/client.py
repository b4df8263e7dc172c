"""Finds a worker, streams from it, and goes to another when one fails before its first token.

Page, CLI and gateway all go through here; `Client("http://localhost:21001")` is all it takes, and the address
of a single worker, or of any OpenAI-compatible server, serves as well as a controller's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Self

import httpx
from httpx_sse import EventSource, SSEError

from llava_core.chat_events import read_chunks
from llava_core.chat_protocol import write_call
from llava_core.config import ClientTimings
from llava_core.errors import LlavaError, NoWorker, WorkerLost
from llava_core.types import Chunk, Request
from serve.directory import Directory, HttpDirectory
from serve.http_errors import error_from
from serve.patience import Patience
from serve.protocol import ModelCard

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1000
MAX_ERROR_BYTES = 64 * 1024
LARGE_CHARS = 512 * 1024
# Shorter than the servers', so that a connection is never used at the moment the other side drops it.
KEEPALIVE_S = 2.0


class Client:
    """One per process and event loop; requests share its connections.

    Besides the controller's, the failures a caller meets are the LlavaError classes. Before the first token a
    retryable one sends the request to another worker; after it, the caller decides.
    """

    def __init__(
        self,
        controller: str,
        *,
        timings: ClientTimings | None = None,
        directory: Directory | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`directory` replaces questions to `controller`, `transport` the network."""
        self._timings = timings or ClientTimings()
        self._http = httpx.AsyncClient(
            transport=transport,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, keepalive_expiry=KEEPALIVE_S),
            # Waits are measured here, around each step, since their lengths differ.
            timeout=httpx.Timeout(None, connect=self._timings.connect_s, pool=self._timings.connect_s),
            trust_env=False,
        )
        self._directory = directory or HttpDirectory(self._http, controller, self._timings)
        # Where each model was last found: good enough while the controller is away or has just been restarted.
        self._remembered: dict[str, str] = {}

    async def models(self) -> tuple[ModelCard, ...]:
        """What is served now, sorted by name. Raises NoWorker when the controller cannot be reached."""
        return await self._directory.cards()

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer as it is made. Closing the iterator (`aclose`, as `contextlib.aclosing` does) cancels the
        request on the worker; just leaving the loop does not.

        All attempts together wait `first_token_s` for the first token; the worker is given up earlier when the
        controller has given it up. A stream that breaks off later raises WorkerLost or WorkerTimeout.
        """
        body = await _body(request)
        failed: list[str] = []
        last: LlavaError | None = None
        deadline = asyncio.get_running_loop().time() + self._timings.first_token_s
        try:
            for _ in range(self._timings.attempts):
                try:
                    address = await self._pick(request.model, failed)
                except NoWorker as error:
                    # Nobody else is left: an overload or timeout says more than that, a lost connection less.
                    raise (error if last is None or isinstance(last, WorkerLost) else last) from None
                async with aclosing(self._stream_from(address, request, body, deadline)) as chunks:
                    try:
                        chunk = await anext(chunks)
                    except LlavaError as error:
                        if not error.retryable:
                            raise
                        log.info("request %s: %s failed before its first token: %s", request.id, address, error.code)
                        failed.append(address)
                        last = error
                        continue
                    self._remembered[request.model] = address
                    yield chunk
                    async for chunk in chunks:
                        yield chunk
                    return
            raise last or NoWorker(f"no worker answered for {request.model!r}; try again in a moment")
        finally:
            # Its traceback leads back here: a circle that would keep the body until the next collection.
            last = None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _pick(self, model: str, failed: list[str]) -> str:
        try:
            return await self._directory.pick(model, failed)
        except NoWorker:
            remembered = self._remembered.get(model)
            if remembered is None or remembered in failed:
                raise
            return remembered

    async def _stream_from(self, address: str, request: Request, body: bytes, deadline: float) -> AsyncGenerator[Chunk]:
        loop = asyncio.get_running_loop()
        begun = False
        patience = Patience(
            lambda: self._directory.is_worth_waiting_for(address, begun=begun), self._timings.check_s, request.id
        )
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "X-Request-Id": request.id}
        try:
            message = self._http.build_request("POST", address + "/v1/chat/completions", content=body, headers=headers)
            async with patience.watching():
                answer = await patience.wait(self._http.send(message, stream=True), deadline)
                try:
                    if answer.status_code != 200:
                        raise await patience.wait(_error(answer), deadline)
                    async with aclosing(_event_data(answer)) as events, aclosing(read_chunks(events)) as chunks:
                        while (chunk := await patience.wait(anext(chunks, None), deadline)) is not None:
                            begun = True
                            yield chunk
                            deadline = loop.time() + self._timings.between_tokens_s
                finally:
                    await answer.aclose()
        except (httpx.HTTPError, httpx.InvalidURL, SSEError) as cause:
            log.info("request %s: lost %s: %r", request.id, address, cause)
            raise WorkerLost("the worker went away; send the request again", request_id=request.id) from cause


async def _body(request: Request) -> bytes:
    """Megabytes of pictures are written in a thread, so that other streams go on meanwhile."""
    if sum(len(image.url) for image in request.images) < LARGE_CHARS:
        return write_call(request)
    return await asyncio.to_thread(write_call, request)


async def _event_data(answer: httpx.Response) -> AsyncGenerator[str]:
    async with aclosing(EventSource(answer).aiter_sse()) as events:
        async for event in events:
            yield event.data


async def _error(answer: httpx.Response) -> LlavaError:
    body = b""
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > MAX_ERROR_BYTES:
            break
    return error_from(answer.status_code, answer.headers, body, source="the worker")
