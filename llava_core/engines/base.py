"""What every engine is: a model behind `generate`, which streams chunks until one carries a finish reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from llava_core.types import Chunk, EngineStatus, ModelInfo, Request


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
