"""The HTTP answer to one chat: it owns the stream of chunks, and lets go of it the moment the reader leaves.

The status is decided by the first chunk: nothing is sent before it, so an error up to there is a real 4xx or 5xx
and whoever asked may still go elsewhere. Later errors are events in the stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable

from fastapi.responses import JSONResponse
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llava_core.chat_events import DONE, AnswerHead, ChunkEvents, completion, error_event, sse, usage_event
from llava_core.chat_protocol import ChatCall
from llava_core.config import ServerLimits
from llava_core.errors import EngineFailure, LlavaError, NoWorker
from llava_core.types import Chunk
from serve.at_once import before_waiting, within
from serve.deadline import in_time
from serve.error_handlers import error_response
from serve.http_errors import status_of
from serve.log_format import MAX_CHARS, prompts_wanted
from serve.metrics import Outcome, Watched
from serve.tracing import Span, counted, tell_phases

log = logging.getLogger(__name__)

_MOST_TOGETHER = 64 * 1024
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class ChatAnswer(Response):
    """Runs the whole exchange in `__call__`, not in a generator's `finally` or a background task: those run late,
    or never when nobody started the generator."""

    media_type = "text/event-stream"

    def __init__(
        self,
        call: ChatCall,
        chunks: AsyncIterator[Chunk],
        limits: ServerLimits,
        watched: Watched | None = None,
        on_failure: Callable[[LlavaError], None] | None = None,
        span: Span | None = None,
    ) -> None:
        """`span` ends with the answer, and is told what became of it."""
        super().__init__(headers=_STREAM_HEADERS)
        del self.headers["content-length"]
        self._call = call
        self._chunks = chunks
        self._limits = limits
        self._head = AnswerHead(call.request.id, call.request.model)
        self._record = _Record(call, watched, span)
        self._on_failure = on_failure

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
            first = await in_time(anext(self._chunks), self._call.request)
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
        events = ChunkEvents(self._head, with_ids=self._call.with_ids)
        # What is ready together goes out together. Nothing stays here while the next chunk is waited for.
        ready = bytearray(events.write(first))

        async def flush() -> None:
            if ready:
                event = bytes(ready)
                ready.clear()
                await self._send_event(send, event)

        last = first
        try:
            while (chunk := await before_waiting(anext(self._chunks, None), flush)) is not None:
                self._record.took(chunk)
                ready += events.write(chunk)
                last = chunk
                if len(ready) > _MOST_TOGETHER:
                    await flush()
        except _ReaderTooSlow:
            raise
        except Exception as error:
            failure = self._failure(error)
            self._record.failed(failure)
            ready += sse(error_event(failure))
        else:
            if self._call.include_usage and last.usage:
                ready += sse(usage_event(self._head, last.usage))
            ready += sse(DONE)
        # With its end, so that a reader sees both at once and can use the connection again.
        await self._send(send, {"type": "http.response.body", "body": bytes(ready), "more_body": False})

    async def _send_whole(self, first: Chunk, scope: Scope, receive: Receive, send: Send) -> None:
        chunks = [first]

        async def take_all() -> None:
            async for chunk in self._chunks:
                self._record.took(chunk)
                chunks.append(chunk)

        try:
            await in_time(take_all(), self._call.request)
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
            await within(lambda: asyncio.timeout(self._limits.send_s), send(message))
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
        if self._on_failure is not None:
            self._on_failure(error)
        # The traceback leads to frames that hold the error and the whole request: a circle of megabytes of pictures.
        return error.with_traceback(None)


class _ReaderTooSlow(Exception):
    """One event was not taken in time."""


async def _reader_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Record:
    """One line of log per request: who asked for how much, what became of it. No word of the chat, unless asked for."""

    def __init__(self, call: ChatCall, watched: Watched | None, span: Span | None) -> None:
        self._call = call
        self._span = span
        self._watched = watched
        self._began = time.monotonic()
        self._first_at: float | None = None
        self._end: Chunk | None = None
        self._said: list[str] | None = [] if prompts_wanted() else None
        self._kind: Outcome = "cancelled"
        self.outcome = "left"
        """Until something else is known: the reader went away."""

    def took(self, chunk: Chunk) -> None:
        if self._watched is not None:
            self._watched.took(len(chunk.token_ids) or 1)
        if self._said is not None:
            self._said.append(chunk.text)
        if self._first_at is None:
            self._first_at = time.monotonic()
            if self._span is not None:
                self._span.event("first token")
        if chunk.phases is not None and self._span is not None:
            tell_phases(self._span.traceparent, chunk.phases, chunk.usage)
        if chunk.finish_reason is not None:
            self._end = chunk
            self.outcome, self._kind = chunk.finish_reason, "ok"

    def failed(self, error: LlavaError) -> None:
        self.outcome = f"{error.code} {status_of(error)}"
        refused = status_of(error) < 500 or isinstance(error, NoWorker)
        self._kind = "rejected" if refused and self._first_at is None else "error"
        if self._watched is not None:
            self._watched.failed(error.code)
        if self._span is not None:
            self._span.failed(error)

    def write(self) -> None:
        request, now = self._call.request, time.monotonic()
        usage = self._end.usage if self._end else None
        if self._watched is not None:
            reason = (self._end.finish_reason or "") if self._end and self._kind == "ok" else ""
            self._watched.ended(self._kind, reason=reason, usage=usage)
        if self._span is not None:
            self._span.note({"llava.outcome": self.outcome, **(counted(usage) if usage else {})})
            self._span.end()
        fields = {
            "model": ascii(request.model[:100]),
            "messages": len(request.messages),
            "images": len(request.images),
            "stream": self._call.stream,
            "outcome": self.outcome,
            "prompt_tokens": usage.prompt_tokens if usage else "-",
            "tokens": usage.completion_tokens if usage else "-",
            "first": "-" if self._first_at is None else f"{self._first_at - self._began:.3f}",
            "took": f"{now - self._began:.3f}",
        }
        if self._said is not None:
            asked = [{message.role: message.text} for message in request.messages]
            fields |= {"prompt": json.dumps(asked)[:MAX_CHARS], "answer": json.dumps("".join(self._said))[:MAX_CHARS]}
        told = " ".join(f"{name}={value}" for name, value in fields.items())
        log.info("chat %s %s", request.id, told, extra={"fields": {"request_id": request.id, **fields}})
