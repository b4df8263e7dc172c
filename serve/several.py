"""Several answers to one request: streams of their own, merged into one whose chunks name their answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from llava_core.errors import WorkerLost
from llava_core.types import Chunk, Request, Usage

Stream = Callable[[Request], AsyncIterator[Chunk]]


async def several(stream: Stream, request: Request, n: int) -> AsyncGenerator[Chunk]:
    """`n` answers as they are made. The last chunk of all carries the usage of all.

    The first begins alone: once it has its first token, the prompt is computed, and the others find it there. An
    error in one ends all; so does closing this iterator.
    """
    queue: asyncio.Queue[Chunk | Exception] = asyncio.Queue(n)
    begun = asyncio.Event()
    tasks = [asyncio.create_task(_put_all(stream, _answer(request, at), at, begun, queue)) for at in range(n)]
    try:
        usages: dict[int, Usage] = {}
        ended = 0
        while ended < n:
            news = await queue.get()
            if isinstance(news, Exception):
                raise news
            if news.finish_reason is not None:
                ended += 1
                if news.usage is not None:
                    usages[news.index] = news.usage
                news = replace(news, usage=_sum(usages) if ended == n else None)
            yield news
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _put_all(
    stream: Stream, request: Request, index: int, begun: asyncio.Event, queue: asyncio.Queue[Chunk | Exception]
) -> None:
    try:
        if index:
            await begun.wait()
        finished = False
        async with aclosing(_closable(stream(request))) as chunks:
            async for chunk in chunks:
                begun.set()
                finished = chunk.finish_reason is not None
                await queue.put(replace(chunk, index=index))
        if not finished:
            raise WorkerLost("an answer broke off before its end; send the request again", request_id=request.id)
    except Exception as error:
        await queue.put(error)


async def _closable(chunks: AsyncIterator[Chunk]) -> AsyncGenerator[Chunk]:
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


def _answer(request: Request, index: int) -> Request:
    """The request for one of the answers; the first is what it would be alone."""
    if index == 0:
        return request
    seed = request.sampling.seed
    if seed is not None:
        digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little", signed=True)
    return replace(request, sampling=replace(request.sampling, seed=seed), id=f"{request.id}-{index}")


def _sum(usages: dict[int, Usage]) -> Usage | None:
    """The prompt counts once, as the first answer met it."""
    if not usages:
        return None
    completion = sum(usage.completion_tokens for usage in usages.values())
    return replace(usages[min(usages)], completion_tokens=completion)
