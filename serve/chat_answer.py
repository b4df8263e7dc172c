"""The HTTP answer to one chat: it owns the stream of chunks, and lets go of it the moment the reader leaves.

The status is decided by the first chunk: nothing is sent before it, so an error up to there is a real 4xx or 5xx
and whoever asked may still go elsewhere. Later errors are events in the stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llava_core.chat_events import DONE, AnswerHead, chunk_event, completion, error_event, sse, usage_event
from llava_core.chat_protocol import ChatCall
from llava_core.config import ServerLimits
from llava_core.errors import EngineFailure, LlavaError
from llava_core.types import Chunk
from serve.error_handlers import error_response
from serve.http_errors import status_of

log = logging.getLogger(__name__)

_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class ChatAnswer(Response):
    """Runs the whole exchange in `__call__`, not in a generator's `finally` or a background task: those run late,
    or never when nobody started the generator."""

    media_type = "text/event-stream"

    def __init__(self, call: ChatCall, chunks: AsyncIterator[Chunk], limits: ServerLimits) -> None:
        super().__init__(headers=_STREAM_HEADERS)
        del self.headers["content-length"]
        self._call = call
        self._chunks = chunks
        self._limits = limits
        self._head = AnswerHead(call.request.id, call.request.model)
        self._record = _Record(call)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = asyncio.create_task(self._answer(scope, receive, send))
        leaving = asyncio.create_task(_reader_leaves(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.wait({answering, leaving})
            # The iterator has stopped by now; this has it free what it held.
            close = getattr(self._chunks, "aclose", None)
            if close is not None:
                await close()
            self._record.write()
        if not answering.cancelled():
            answering.result()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            first = await anext(self._chunks)
        except Exception as error:
            failure = self._failure(error)
            self._record.failed(failure)
            await error_response(failure)(scope, receive, send)
            return
        self._record.took(first)
        if not self._call.stream:
            await self._send_whole(first, scope, receive, send)
            return
        try:
            await self._send_stream(first, send)
        except _ReaderTooSlow:
            # Returning without the end has the server below hang up.
            self._record.outcome = "reader too slow"

    async def _send_stream(self, first: Chunk, send: Send) -> None:
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send_event(send, sse(chunk_event(self._head, first, first=True)))
        last, named = first, {first.index}
        try:
            async for chunk in self._chunks:
                self._record.took(chunk)
                await self._send_event(send, sse(chunk_event(self._head, chunk, first=chunk.index not in named)))
                last = chunk
                named.add(chunk.index)
        except _ReaderTooSlow:
            raise
        except Exception as error:
            failure = self._failure(error)
            self._record.failed(failure)
            await self._send_event(send, sse(error_event(failure)))
        else:
            ending = sse(usage_event(self._head, last.usage)) if self._call.include_usage and last.usage else b""
            await self._send_event(send, ending + sse(DONE))
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_whole(self, first: Chunk, scope: Scope, receive: Receive, send: Send) -> None:
        chunks = [first]
        try:
            async for chunk in self._chunks:
                self._record.took(chunk)
                chunks.append(chunk)
            answer: Response = JSONResponse(completion(self._head, chunks))
        except Exception as error:
            failure = self._failure(error)
            self._record.failed(failure)
            answer = error_response(failure)
        await answer(scope, receive, send)

    async def _send_event(self, send: Send, event: bytes) -> None:
        await self._send(send, {"type": "http.response.body", "body": event, "more_body": True})

    async def _send(self, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(self._limits.send_s):
                await send(message)
        except TimeoutError:
            raise _ReaderTooSlow from None

    def _failure(self, error: Exception) -> LlavaError:
        """What the reader is told. Of failures that nobody foresaw that is the id under which the log has the cause."""
        request_id = self._call.request.id
        if isinstance(error, StopAsyncIteration):
            error = EngineFailure("the model's answer had neither text nor end; send the request again")
        if not isinstance(error, LlavaError):
            log.error("request %s failed", request_id, exc_info=error)
            return EngineFailure(
                f"the model failed on this request; the server's log tells more under {request_id}",
                request_id=request_id,
            )
        if isinstance(error, EngineFailure):
            log.error("request %s failed: %s", request_id, error.message, exc_info=error.__cause__)
        if error.request_id is None and status_of(error) >= 500:
            error.request_id = request_id
        # The traceback leads to frames that hold the error and the whole request: a circle of megabytes of pictures.
        return error.with_traceback(None)


class _ReaderTooSlow(Exception):
    """One event was not taken in time."""


async def _reader_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Record:
    """One line of log per request: who asked for how much, what became of it. No word of the chat."""

    def __init__(self, call: ChatCall) -> None:
        self._call = call
        self._began = time.monotonic()
        self._first_at: float | None = None
        self._end: Chunk | None = None
        self.outcome = "left"
        """Until something else is known: the reader went away."""

    def took(self, chunk: Chunk) -> None:
        if self._first_at is None:
            self._first_at = time.monotonic()
        if chunk.finish_reason is not None:
            self._end = chunk
            self.outcome = chunk.finish_reason

    def failed(self, error: LlavaError) -> None:
        self.outcome = f"{error.code} {status_of(error)}"

    def write(self) -> None:
        request, now = self._call.request, time.monotonic()
        usage = self._end.usage if self._end else None
        log.info(
            "chat %s model=%s messages=%d images=%d stream=%s outcome=%s prompt_tokens=%s tokens=%s first=%s took=%.3f",
            request.id,
            ascii(request.model[:100]),
            len(request.messages),
            len(request.images),
            self._call.stream,
            self.outcome,
            usage.prompt_tokens if usage else "-",
            usage.completion_tokens if usage else "-",
            "-" if self._first_at is None else f"{self._first_at - self._began:.3f}",
            now - self._began,
        )
