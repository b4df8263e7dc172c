"""The chunks of an answer out of the HTTP body in which they arrive as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import aiohttp

from llava_core.chat_events import ChunkReader
from llava_core.errors import WorkerLost
from llava_core.server_sent import EventReader
from llava_core.types import Chunk
from serve.http_session import let_go, read_piece


async def read_answer(
    answer: aiohttp.ClientResponse, wait: Callable[[Awaitable[bytes]], Awaitable[bytes]]
) -> AsyncGenerator[Chunk]:
    """Each chunk as soon as its event is here; `wait` bounds each wait for more.

    Raises the error that an event describes, WorkerLost for what is no stream or ends too early, and HTTP_ERRORS.
    """
    if answer.content_type != "text/event-stream":
        raise WorkerLost("the worker's answer is no stream of events; send the request again")
    events, chunks = EventReader(), ChunkReader()
    while not chunks.done and (piece := await wait(read_piece(answer))):
        for data in events.feed(piece):
            chunk = chunks.take(data)
            if chunk is not None:
                yield chunk
            if chunks.done:
                break
    yield chunks.end()
    await let_go(answer)
