"""Where the command line's answers come from: a controller over HTTP, or a checkpoint loaded into this process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from llava_core.engines.base import Engine
from llava_core.engines.load import EngineOptions, load_engine
from llava_core.errors import EngineFailure, NoWorker, UnknownModel
from llava_core.types import Chunk, ModelInfo, Request
from serve.client import Client


class Source(Protocol):
    """Answers requests; both kinds raise the same LlavaError classes."""

    async def models(self) -> Sequence[ModelInfo]: ...

    def stream(self, request: Request) -> AsyncIterator[Chunk]: ...

    async def aclose(self) -> None: ...


class RemoteSource:
    """A controller, or anything else that answers `/v1`."""

    def __init__(self, controller: str) -> None:
        self._client = Client(controller)

    async def models(self) -> Sequence[ModelInfo]:
        return [card.info for card in await self._client.models()]

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return self._client.stream(request)

    async def aclose(self) -> None:
        await self._client.aclose()


class LocalSource:
    """One engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def models(self) -> Sequence[ModelInfo]:
        return [self._engine.info]

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return self._engine.generate(request)

    async def aclose(self) -> None:
        await self._engine.aclose()


async def load_local(options: EngineOptions) -> LocalSource:
    """Load the checkpoint. What libraries print meanwhile goes to stderr: stdout is for answers."""
    with contextlib.redirect_stdout(sys.stderr):
        return LocalSource(await _in_daemon_thread(lambda: load_engine("transformers", options)))


async def _in_daemon_thread(work: Callable[[], Engine]) -> Engine:
    """Like `asyncio.to_thread`, but Ctrl-C need not wait until the work is done."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Engine] = loop.create_future()

    def settle(engine: Engine | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if engine is not None:
            result.set_result(engine)
        else:
            result.set_exception(error or EngineFailure("the checkpoint could not be loaded"))

    def run() -> None:
        try:
            engine, error = work(), None
        except BaseException as raised:
            engine, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, engine, error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await result


async def choose_model(source: Source, wanted: str | None) -> tuple[ModelInfo, Sequence[ModelInfo]]:
    """The model to ask and all there are; the first where none is wanted by name."""
    models = await source.models()
    if not models:
        raise NoWorker("no model is being served yet; start a worker or wait for one to load")
    if wanted is None:
        return models[0], models
    for model in models:
        if model.name == wanted:
            return model, models
    raise UnknownModel(
        f"no worker serves {wanted!r}; running: {', '.join(model.name for model in models)}", param="model"
    )
