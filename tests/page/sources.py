"""Sources of answers for tests of the page: echo engines by name, and one whose words come when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from copy import deepcopy
from typing import Any

from llava_core.engines.echo import EchoEngine
from llava_core.errors import LlavaError, UnknownModel
from llava_core.types import Chunk, ModelInfo, Request, Usage
from serve.protocol import ModelCard


async def act(behind: Any, message: dict[str, Any], reader: str = "reader") -> AsyncGenerator[dict[str, Any]]:
    """Do what the message says and show the chat as a browser puts it together, until its answer is there."""
    view = await behind.tell(message)
    async with aclosing(behind.follow(message, reader)) as told:
        async for heard in told:
            if "turns" in heard:
                view = heard
            else:
                blocks = view["turns"][-1]["answer"]["blocks"]
                blocks[heard["from"] :] = heard["blocks"]
            yield deepcopy(view)


class EchoSource:
    """Each engine under its name, as the client offers them."""

    def __init__(self, *engines: EchoEngine) -> None:
        self.engines = {engine.info.name: engine for engine in engines}
        self.requests: list[Request] = []

    async def models(self) -> tuple[ModelCard, ...]:
        return tuple(ModelCard(engine.info, 1) for engine in self.engines.values())

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        self.requests.append(request)
        if request.model not in self.engines:
            raise UnknownModel(f"no worker serves {request.model!r}")
        async for chunk in self.engines[request.model].generate(request):
            yield chunk


class ToldSource:
    """Says what `say`, `end` and `fail` tell it to; `left` is set when a reader closed a stream before its end."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.left = asyncio.Event()
        self.asked = asyncio.Event()
        self._told: asyncio.Queue[Chunk | LlavaError | Exception] = asyncio.Queue()

    async def models(self) -> Sequence[ModelCard]:
        return [ModelCard(ModelInfo("told", "test", 100), 1)]

    def say(self, text: str) -> None:
        self._told.put_nowait(Chunk(text=text))

    def end(self, completion_tokens: int = 3) -> None:
        usage = Usage(prompt_tokens=10, completion_tokens=completion_tokens, image_tokens=4, cached_tokens=2)
        self._told.put_nowait(Chunk(finish_reason="stop", usage=usage))

    def fail(self, error: Exception) -> None:
        self._told.put_nowait(error)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk]:
        self.requests.append(request)
        self.asked.set()
        try:
            while True:
                told = await self._told.get()
                if isinstance(told, Exception):
                    raise told
                yield told
                if told.finish_reason:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise
