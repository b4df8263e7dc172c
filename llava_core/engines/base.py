"""What every engine is: a model behind `generate`, which streams chunks until one carries a finish reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, runtime_checkable

from llava_core.inspection import SeenAttention, SeenPrompt
from llava_core.types import Chunk, EngineMemory, EngineStatus, ModelInfo, Request


@runtime_checkable
class Inspects(Protocol):
    """An engine that can be looked into; its `info` says so."""

    async def look(self, request: Request) -> SeenPrompt: ...

    async def attend(self, request: Request, first: int, count: int) -> SeenAttention: ...


@runtime_checkable
class TellsMemory(Protocol):
    """An engine that knows how full its device is."""

    def memory(self) -> EngineMemory: ...


class Engine(Protocol):
    """One loaded model. All methods are called from one event loop and never block it.

    `generate` raises LlavaError subclasses only: before the first chunk for what can be known then (BadImage,
    ContextOverflow, Overloaded), later for a failure on the way. Closing the iterator early (`aclose`) cancels
    the request: within one step it stops computing and frees what it held.
    """

    @property
    def info(self) -> ModelInfo: ...

    def status(self) -> EngineStatus: ...

    def generate(self, request: Request) -> AsyncIterator[Chunk]: ...

    async def aclose(self) -> None: ...
