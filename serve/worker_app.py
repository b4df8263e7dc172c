"""An engine behind HTTP: the OpenAI-compatible routes, the worker's status, and the truth about its health."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from starlette.responses import Response

from llava_core.config import RequestLimits, ServerLimits
from llava_core.engines.base import Engine
from llava_core.errors import NoWorker, UnknownModel
from llava_core.types import Chunk, Request
from serve.error_handlers import add_error_handlers
from serve.http_frame import frame
from serve.protocol import ModelCard, WorkerStatus
from serve.v1 import v1_routes


@dataclass
class EngineSlot:
    """Where a worker's engine stands once it is loaded; until then, and while it shuts down, requests are refused
    in a way that sends them elsewhere."""

    engine: Engine | None = None
    draining: bool = False

    @property
    def state(self) -> Literal["loading", "ready", "draining"]:
        if self.draining:
            return "draining"
        return "loading" if self.engine is None else "ready"

    def ready_engine(self) -> Engine:
        if self.draining:
            raise NoWorker("this worker is shutting down; ask another one", retry_after=1)
        if self.engine is None:
            raise NoWorker("this worker is still loading its model; try again in a moment", retry_after=5)
        return self.engine

    def status(self) -> WorkerStatus:
        engine = self.ready_engine()
        busy = engine.status()
        return WorkerStatus(
            model_names=(engine.info.name,),
            queue_length=busy.running + busy.waiting,
            capacity=max(1, busy.capacity),
            models=(engine.info,),
        )

    async def models(self) -> tuple[ModelCard, ...]:
        return (ModelCard(self.ready_engine().info, workers=1),)

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        engine = self.ready_engine()
        if request.model != engine.info.name:
            raise UnknownModel(f"this worker serves {engine.info.name!r}, not {request.model[:200]!r}", param="model")
        return engine.generate(request)


def create_app(
    engine: Engine | EngineSlot,
    *,
    limits: RequestLimits | None = None,
    server: ServerLimits | None = None,
) -> FastAPI:
    """The worker's app. Starting, stopping and closing the engine are the caller's."""
    slot = engine if isinstance(engine, EngineSlot) else EngineSlot(engine)
    limits, server = limits or RequestLimits(), server or ServerLimits()
    app = FastAPI(title="LLaVA Serve worker", docs_url=None, redoc_url=None, redirect_slashes=False)
    add_error_handlers(app)
    frame(app, limits.max_body_bytes, server)
    app.include_router(_status_routes(slot))
    app.include_router(v1_routes(slot, limits=limits, server=server))
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
