"""An engine whose every answer is known beforehand: the words of a chat follow from the chat alone.

It keeps an engine's promises (slots, a bounded queue, max_tokens, usage, cancellation, begun answers), counts what it
computes, and can be told to be slow, to fail or to hold still.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from llava_core.errors import BadRequest, LlavaError, Overloaded
from llava_core.types import Chunk, EngineStatus, Message, ModelInfo, Request, Usage

LENGTH = 60
"""Words of an answer that nothing cuts."""


def words_of(messages: Sequence[Message], count: int = LENGTH) -> list[str]:
    """The whole answer to a chat that does not end with an unfinished turn."""
    seed = "|".join(f"{message.role}:{message.text}" for message in messages)
    digests = (hashlib.sha256(f"{seed}#{number}".encode()).hexdigest() for number in range(count))
    return [f"{number}{digest[:4]} " for number, digest in enumerate(digests)]


def answer_to(request: Request, count: int = LENGTH) -> str:
    return "".join(words_of(request.messages, count)[: request.sampling.max_tokens])


@dataclass
class FakeEngine:
    """`with_ids` tells token ids, as our own engine does; without them an answer goes on from its text, as with other
    servers. `hold` keeps every answer where it is while it is cleared."""

    name: str = "m"
    delay_s: float = 0.0
    first_s: float = 0.0
    capacity: int = 1000
    max_waiting: int = 1000
    length: int = LENGTH
    with_ids: bool = True
    failure: LlavaError | None = None
    computed: int = 0
    prefilled: int = 0
    asked: list[Request] = field(default_factory=list[Request])
    running: int = 0
    waiting: int = 0

    def __post_init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self._slots = asyncio.Semaphore(self.capacity)

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.name, engine="fake", context_length=4096)

    def status(self) -> EngineStatus:
        return EngineStatus(self.running, self.waiting, self.capacity, self.max_waiting)

    async def generate(self, request: Request) -> AsyncGenerator[Chunk]:
        self.asked.append(request)
        if self.failure is not None:
            raise self.failure
        if self._slots.locked() and self.waiting >= self.max_waiting:
            raise Overloaded("the queue is full; try again in a moment", retry_after=1)
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            async for chunk in self._answer(request):
                yield chunk
        finally:
            self.running -= 1
            self._slots.release()

    async def _answer(self, request: Request) -> AsyncGenerator[Chunk]:
        messages, said = request.messages, 0
        most = request.sampling.max_tokens or self.length
        if request.begun is not None:
            said = len(request.begun.token_ids)
        elif request.continue_final:
            messages = messages[:-1]
        words = words_of(messages, self.length)
        if request.begun is not None and request.begun.text != "".join(words[:said]):
            raise BadRequest("this is not how the answer begins")
        counted = said
        if request.continue_final and request.begun is None:
            counted, begun = 0, request.messages[-1].text
            while begun and begun.startswith(words[said]):
                begun, said = begun[len(words[said]) :], said + 1
            if begun:
                raise BadRequest("this is not how the answer begins")
        prompt = sum(len(message.text.split()) for message in messages) + said - counted
        self.prefilled += 1
        await asyncio.sleep(self.first_s)
        last = min(len(words), said - counted + most) - 1
        for number in range(said, last + 1):
            await self.hold.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            self.computed += 1
            counted += 1
            chunk = Chunk(words[number], token_ids=(number,) if self.with_ids else ())
            if number == last:
                reason = "stop" if number + 1 == len(words) else "length"
                chunk = replace(chunk, finish_reason=reason, usage=Usage(prompt, counted))
            yield chunk

    async def aclose(self) -> None:
        pass
