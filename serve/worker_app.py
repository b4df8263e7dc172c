"""An engine behind HTTP: the OpenAI-compatible routes, the worker's status, and the truth about its health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from starlette.responses import Response

from llava_core.config import RequestLimits, ServerLimits
from llava_core.engines.base import Engine, Inspects, TellsMemory
from llava_core.errors import BadRequest, DevicePoisoned, LlavaError, NoWorker, Overloaded, UnknownModel
from llava_core.inspection import SeenAttention, SeenPrompt
from llava_core.types import Chunk, EngineMemory, Request
from serve.error_handlers import add_error_handlers
from serve.gate import Gate
from serve.http_frame import frame
from serve.inspecting import inspect_routes
from serve.metrics import Metrics
from serve.protocol import Load, ModelCard, WorkerStatus
from serve.remote_inspector import refusal
from serve.v1 import CHAT_PATH, chat_endpoint, v1_routes


@dataclass
class EngineSlot:
    """Where a worker's engine stands once it is loaded; until then, and while it shuts down, requests are refused
    in a way that sends them elsewhere."""

    engine: Engine | None = None
    draining: bool = False
    poisoned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the device failed for good: only a new process helps."""

    @property
    def state(self) -> Literal["loading", "ready", "draining"]:
        if self.draining:
            return "draining"
        return "loading" if self.engine is None else "ready"

    def ready_engine(self) -> Engine:
        if self.draining or self.poisoned.is_set():
            raise NoWorker("this worker is shutting down; ask another one", retry_after=1)
        if self.engine is None:
            raise NoWorker("this worker is still loading its model; try again in a moment", retry_after=5)
        return self.engine

    def refusal(self, answers: int) -> LlavaError | None:
        """What any request for so many answers would be refused with now, whatever it asks for."""
        try:
            busy = self.ready_engine().status()
        except NoWorker as error:
            return error.with_traceback(None)
        if busy.has_room_for(answers):
            return None
        if busy.max_waiting is not None and answers > busy.capacity + busy.max_waiting:
            sentence = f"n={answers} answers are more than this worker takes on at once; ask for fewer"
            return BadRequest(sentence, param="n")
        sentence = f"{busy.waiting} requests already wait for this model; try again a little later"
        return Overloaded(sentence, retry_after=1 + busy.waiting // busy.capacity)

    def note(self, failure: LlavaError) -> None:
        if isinstance(failure, DevicePoisoned):
            self.poisoned.set()

    def status(self) -> WorkerStatus:
        engine = self.ready_engine()
        busy = engine.status()
        return WorkerStatus(
            model_names=(engine.info.name,),
            queue_length=busy.running + busy.waiting,
            capacity=max(1, busy.capacity),
            models=(engine.info,),
        )

    def load(self) -> tuple[Load, ...]:
        if self.engine is None:
            return ()
        busy = self.engine.status()
        return (Load(self.engine.info.name, busy.running, busy.waiting),)

    def memory(self) -> tuple[str, EngineMemory] | None:
        """The model's name, and how full its device is, where the engine tells."""
        engine = self.engine
        return (engine.info.name, engine.memory()) if isinstance(engine, TellsMemory) else None

    async def look(self, request: Request) -> SeenPrompt:
        return await self._inspected(request).look(request)

    async def attend(self, request: Request, first: int, count: int) -> SeenAttention:
        return await self._inspected(request).attend(request, first, count)

    def _inspected(self, request: Request) -> Inspects:
        engine = self._engine_for(request)
        if not (engine.info.inspects and isinstance(engine, Inspects)):
            raise refusal(request.model)
        return engine

    async def models(self) -> tuple[ModelCard, ...]:
        return (ModelCard(self.ready_engine().info, workers=1),)

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return self._engine_for(request).generate(request)

    def _engine_for(self, request: Request) -> Engine:
        engine = self.ready_engine()
        if request.model != engine.info.name:
            raise UnknownModel(f"this worker serves {engine.info.name!r}, not {request.model[:200]!r}", param="model")
        return engine


def create_app(
    engine: Engine | EngineSlot,
    *,
    limits: RequestLimits | None = None,
    server: ServerLimits | None = None,
    token: str | None = None,
) -> FastAPI:
    """The worker's app. Starting, stopping and closing the engine are the caller's. With a `token`, all but the two
    questions after its health must show it."""
    slot = engine if isinstance(engine, EngineSlot) else EngineSlot(engine)
    limits, server = limits or RequestLimits(), server or ServerLimits()
    app = FastAPI(title="LLaVA Serve worker", docs_url=None, redoc_url=None, redirect_slashes=False)
    add_error_handlers(app)
    metrics = Metrics(slot.load, memory=slot.memory)
    chats = chat_endpoint(
        slot, limits=limits, server=server, metrics=metrics, on_failure=slot.note, refusal=slot.refusal
    )
    direct = {CHAT_PATH: chats}
    frame(app, limits.max_body_bytes, server, direct=direct, gate=Gate(token, api="control"))
    app.include_router(_status_routes(slot))
    app.include_router(inspect_routes(slot, limits=limits))
    app.include_router(v1_routes(slot, limits=limits, server=server, metrics=metrics))
    app.get("/metrics")(metrics.endpoint())
    return app


def _status_routes(slot: EngineSlot) -> APIRouter:
    router = APIRouter()

    @router.post("/worker_get_status")
    async def worker_get_status() -> WorkerStatus:
        return slot.status()

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": slot.state}

    @router.get("/health/ready")
    async def ready() -> Response:
        slot.ready_engine()
        return JSONResponse({"status": "ready"})

    return router
