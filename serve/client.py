"""Finds a worker, streams from it, and when that one fails goes on with another.

Page, CLI and gateway all go through here; `Client("http://localhost:21000")` is all it takes, and the address
of a single worker, or of any OpenAI-compatible server, serves as well as a controller's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Collection
from contextlib import aclosing
from dataclasses import replace
from typing import Self, TypeVar

import aiohttp

from llava_core.config import BreakerLimits, ClientTimings, RetryLimits
from llava_core.errors import BadImage, EngineFailure, LlavaError, NoWorker, Overloaded, WorkerLost, WorkerTimeout
from llava_core.types import Chunk, Request
from serve import tracing
from serve.answer_stream import read_answer
from serve.breaker import Breakers
from serve.continuation import Progress
from serve.credentials import known_token
from serve.deadline import HEADER as DEADLINE_HEADER
from serve.directory import Directory, HttpDirectory
from serve.http_errors import error_from
from serve.http_session import HTTP_ERRORS, HttpSession, read_piece
from serve.moderation import Moderation
from serve.monitor import Monitor
from serve.patience import Patience, Silence
from serve.protocol import ModelCard
from serve.remote_inspector import RemoteInspector
from serve.request_body import RequestBody, request_body
from serve.retry_budget import RetryBudget

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ERROR_BYTES = 64 * 1024
_MOST_REMEMBERED = 16


class Client:
    """One per process and event loop; requests share its connections.

    Besides the controller's, the failures a caller meets are the LlavaError classes. Before the first token a
    retryable one sends the request to another worker; after it, the answer goes on with another worker of the model,
    and the reader notices a pause at most.
    """

    def __init__(
        self,
        controller: str,
        *,
        timings: ClientTimings | None = None,
        directory: Directory | None = None,
        retries: RetryLimits | None = None,
        breakers: BreakerLimits | None = None,
        credential: str | None = None,
    ) -> None:
        """`directory` replaces questions to `controller`. `credential` is the control plane's token, or an API key;
        without it the token is shown where it is known, see `serve/credentials.py`."""
        self._timings = timings or ClientTimings()
        credential = credential or (known_token(controller) if directory is None else None)
        headers = {"Authorization": f"Bearer {credential}"} if credential else None
        self._http = HttpSession(connect_s=self._timings.connect_s, headers=headers)
        self._directory = directory or HttpDirectory(self._http, controller, self._timings)
        self._budget = RetryBudget(retries)
        self._breakers = Breakers(breakers)
        self.inspector = RemoteInspector(self._http, self._pick, self._breakers)
        """A look into the models that are served."""
        self.monitor = Monitor(self._http, controller, self._timings)
        """What the workers are doing."""
        self.events: Counter[str] = Counter()
        """How often a request was sent elsewhere, and whose fault it was."""
        self.moderation: Moderation | None = None
        # Where each model was last found, latest last: good enough while the controller is away or was just restarted.
        self._remembered: dict[str, dict[str, None]] = {}

    async def models(self) -> tuple[ModelCard, ...]:
        """What is served now, sorted by name. Raises NoWorker when the controller cannot be reached."""
        return await self._directory.cards()

    def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        """The answer as it is made. Closing the iterator (`aclose`, as `contextlib.aclosing` does) cancels the
        request on the worker; just leaving the loop does not.

        All attempts together wait `first_token_s` for the first token; a worker is given up earlier when the
        controller has given it up. Raises what the last worker failed with when nobody else can take over.
        Where there is a `moderation`, what it refuses is raised as ContentRefused.
        """
        return self._stream(request) if self.moderation is None else self.moderation.stream(self._stream, request)

    async def _stream(self, request: Request) -> AsyncGenerator[Chunk]:
        self._budget.asked()
        span = tracing.Span("ask", parent=request.trace, kind="client", attributes=tracing.about(request))
        request = replace(request, trace=span.traceparent)
        progress, wanted, body = Progress(request), request, await request_body(request)
        failed: list[str] = []
        last: LlavaError | None = None
        begun, attempts, continuations = False, 1, 0
        deadline = asyncio.get_running_loop().time() + self._timings.first_token_s
        if request.deadline is not None:
            deadline = min(deadline, request.deadline)
        try:
            while True:
                try:
                    with tracing.span("find a worker", parent=request.trace):
                        address = await self._pick(request, failed)
                except NoWorker as error:
                    # Nobody else is left: what the last one failed with says more, a lost connection before the
                    # first token less.
                    raise (error if last is None or (isinstance(last, WorkerLost) and not begun) else last) from None
                try:
                    with self._breakers.trying(address):
                        async with aclosing(self._stream_from(address, wanted, body, deadline)) as chunks:
                            chunk = await anext(chunks)
                            self._breakers.succeeded(address)
                            self._remember(request.model, address)
                            begun = True
                            yield progress.took(chunk)
                            async for chunk in chunks:
                                yield progress.took(chunk)
                            return
                except LlavaError as error:
                    self._note(request.model, address, error)
                    if begun and not error.retryable:
                        # The first worker took this request, so that another one does not is no news for the caller.
                        raise (error if last is None else last) from None
                    if not error.retryable:
                        raise
                    failed.append(address)
                    last = error
                if begun:
                    continuations += 1
                    self.events["continuation"] += 1
                    span.event("continuation")
                    if continuations > self._timings.continuations:
                        raise last
                    wanted = progress.rest(last)
                    body = await request_body(wanted)
                    deadline = asyncio.get_running_loop().time() + self._timings.between_tokens_s
                    log.warning("request %s: %s was lost in mid-answer; another goes on", request.id, address)
                    continue
                attempts += 1
                if asyncio.get_running_loop().time() >= deadline:
                    raise last
                # A connection that broke cost nobody any work; what a worker refused or failed, it would cost again.
                if attempts > self._timings.attempts or not (isinstance(last, WorkerLost) or self._budget.spend()):
                    raise last
                self.events["retry"] += 1
                span.event("retry")
                log.info("request %s: %s failed before its first token: %s", request.id, address, last.code)
        except LlavaError as error:
            span.failed(error)
            raise
        finally:
            span.end()
            # Its traceback leads back here: a circle that would keep the body until the next collection.
            last = None

    def refusal(self, places: Collection[tuple[str, str]]) -> Overloaded | None:
        """What any request would be refused with, where all these models at these addresses have no room."""
        full = self._breakers.full()
        return _again(full[next(iter(places))]) if places and full.keys() >= set(places) else None

    async def aclose(self) -> None:
        await self._http.aclose()
        if self.moderation is not None:
            await self.moderation.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _pick(self, request: Request, failed: list[str]) -> str:
        while True:
            address = await self._found(request, failed)
            # While the controller was asked, another request may have begun to find out whether this one works again.
            if address not in self._breakers.blocked():
                return address

    async def _found(self, request: Request, failed: list[str]) -> str:
        model = request.model
        full = {address: said for (name, address), said in self._breakers.full().items() if name == model}
        blocked = (*self._breakers.blocked(), *full)
        try:
            return await self._directory.pick(model, tuple(dict.fromkeys((*failed, *blocked))), request.id)
        except NoWorker:
            if full and not failed:
                raise _again(next(iter(full.values()))) from None
            remembered = self._remembered.get(model, {})
            for address in reversed(remembered):
                if address not in failed and address not in blocked:
                    return address
            raise

    def _remember(self, model: str, address: str) -> None:
        remembered = self._remembered.setdefault(model, {})
        remembered.pop(address, None)
        remembered[address] = None
        if len(remembered) > _MOST_REMEMBERED:
            del remembered[next(iter(remembered))]

    def _note(self, model: str, address: str, error: LlavaError) -> None:
        """What a failure says about the worker: a refusal shows that it works, a wrong request says nothing."""
        if isinstance(error.__cause__, Silence):
            # The controller, from whom this is known, sends nothing there until it is heard of again.
            return
        if isinstance(error, WorkerLost | WorkerTimeout | EngineFailure):
            unreachable = isinstance(error.__cause__, aiohttp.ClientConnectorError)
            if self._breakers.failed(address, at_once=unreachable):
                self.events["circuit_opened"] += 1
                log.warning("%s is left alone for a moment: %s", address, error.code)
        else:
            self._breakers.succeeded(address)
            if isinstance(error, Overloaded):
                self._breakers.refused(model, address, _again(error))

    async def _stream_from(
        self, address: str, request: Request, body: bytes | RequestBody, deadline: float
    ) -> AsyncGenerator[Chunk]:
        loop = asyncio.get_running_loop()
        begun = False
        patience = Patience(
            lambda: self._directory.is_worth_waiting_for(address, begun=begun), self._timings.check_s, request.id
        )
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
            "X-Request-Id": request.id,
            DEADLINE_HEADER: f"{max(0.001, deadline - loop.time()):.3f}",
        }
        if request.trace is not None:
            headers[tracing.HEADER] = request.trace

        def wait(step: Awaitable[T]) -> Awaitable[T]:
            return patience.wait(step, deadline)

        try:
            with patience.watching():
                answer = await wait(self._http.send("POST", address + "/v1/chat/completions", body, headers))
                try:
                    if answer.status != 200:
                        raise await wait(_error(answer))
                    async with aclosing(read_answer(answer, wait)) as chunks:
                        async for chunk in chunks:
                            begun = True
                            yield chunk
                            deadline = loop.time() + self._timings.between_tokens_s
                finally:
                    answer.close()
        except HTTP_ERRORS as cause:
            if isinstance(cause.__cause__, BadImage):  # the request could not be written to its end
                raise cause.__cause__ from None
            log.info("request %s: lost %s: %r", request.id, address, cause)
            raise WorkerLost("the worker went away; send the request again", request_id=request.id) from cause


def _again(said: Overloaded) -> Overloaded:
    """The same, for somebody else to raise."""
    return Overloaded(said.message, param=said.param, retry_after=said.retry_after)


async def _error(answer: aiohttp.ClientResponse) -> LlavaError:
    body = b""
    while len(body) <= MAX_ERROR_BYTES and (piece := await read_piece(answer)):
        body += piece
    return error_from(answer.status, answer.headers, body, source="the worker")
