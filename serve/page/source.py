"""What the page needs of the client, so that any source of answers can stand behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from llava_core.types import Chunk, ModelInfo, Request


class Card(Protocol):
    """One model on offer and how many workers serve it."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def workers(self) -> int: ...


class AnswerSource(Protocol):
    """`serve.client.Client`, as seen from here: errors are LlavaError, closing the stream cancels it."""

    async def models(self) -> Sequence[Card]: ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]: ...
