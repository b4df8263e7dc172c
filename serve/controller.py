"""Knows which workers are alive and sends requests to them; its /v1 speaks for all of them.
python -m serve.controller --host 127.0.0.1 --port 21001 --dispatch-method shortest_queue
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any

import httpx
import typer
from fastapi import APIRouter, FastAPI
from pydantic import TypeAdapter

from llava_core.config import CONTROLLER_PORT, ClientTimings, RequestLimits, ServerLimits, WorkerTimings
from llava_core.errors import LlavaError, NoWorker
from serve.client import Client
from serve.dispatch import POLICIES
from serve.error_handlers import add_error_handlers
from serve.gateway import PoolDirectory, gateway_routes
from serve.http_frame import frame
from serve.protocol import (
    AddressQuery,
    HeartBeat,
    Known,
    ModelNames,
    Registration,
    Waiting,
    WorkerAddress,
    WorkerName,
    WorkerStatus,
)
from serve.server import listen, own_address, run_server, start_logging
from serve.worker_pool import WorkerPool

# Plain help: boxes cut long option names short.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
log = logging.getLogger("serve.controller")


def create_app(
    pool: WorkerPool,
    *,
    clock: Callable[[], float] = time.monotonic,
    limits: RequestLimits | None = None,
    server: ServerLimits | None = None,
    client_timings: ClientTimings | None = None,
) -> FastAPI:
    limits, server = limits or RequestLimits(), server or ServerLimits()
    client = Client("", timings=client_timings, directory=PoolDirectory(pool, clock))
    workers = httpx.AsyncClient(timeout=pool.timings.control_timeout_s, trust_env=False)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        sweeping = asyncio.create_task(_sweep(pool, clock))
        yield
        sweeping.cancel()
        await client.aclose()
        await workers.aclose()

    app = FastAPI(
        title="LLaVA Serve controller", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    add_error_handlers(app)
    frame(app, limits.max_body_bytes, server)
    app.include_router(_control_routes(pool, clock, workers))
    app.include_router(gateway_routes(client, limits=limits, server=server))
    return app


def _control_routes(pool: WorkerPool, clock: Callable[[], float], workers: httpx.AsyncClient) -> APIRouter:
    router = APIRouter()

    @router.post("/register_worker")
    async def register_worker(registration: Registration) -> Known:
        if pool.register(registration, clock()):
            names = ", ".join(map(ascii, registration.worker_status.model_names))
            log.info("registered %s with %s", registration.worker_name, names)
        return Known(True)

    @router.post("/receive_heart_beat")
    async def receive_heart_beat(beat: HeartBeat) -> Known:
        return Known(pool.heartbeat(beat.worker_name, beat.queue_length, clock()))

    @router.post("/deregister_worker")
    async def deregister_worker(worker: WorkerName) -> Known:
        if pool.deregister(worker.worker_name):
            log.info("%s said goodbye", worker.worker_name)
        return Known(False)

    @router.post("/worker_is_listed")
    async def worker_is_listed(worker: WorkerName) -> Known:
        return Known(pool.lists(worker.worker_name, clock()))

    @router.post("/worker_is_worth_waiting_for")
    async def worker_is_worth_waiting_for(waiting: Waiting) -> Known:
        return Known(pool.is_worth_waiting_for(waiting.worker_name, clock(), begun=waiting.begun))

    @router.post("/list_models")
    async def list_models() -> ModelNames:
        return ModelNames(tuple(card.info.name for card in pool.cards(clock())))

    @router.post("/get_worker_address")
    async def get_worker_address(query: AddressQuery) -> WorkerAddress:
        return WorkerAddress(pool.pick(query.model, clock(), query.exclude))

    @router.post("/refresh_all_workers")
    async def refresh_all_workers() -> ModelNames:
        addresses = pool.addresses(clock())
        answers = await asyncio.gather(*(_ask_status(workers, address) for address in addresses))
        for address, status in zip(addresses, answers, strict=True):
            if status is None:
                pool.deregister(address)
                log.info("%s did not answer and is no longer listed", address)
            elif pool.lists(address, clock()):
                pool.register(Registration(address, status), clock())
        return await list_models()

    @router.post("/worker_get_status")
    async def worker_get_status() -> WorkerStatus:
        total = pool.total(clock())
        if total is None:
            raise NoWorker("no worker is running yet; start one with python -m serve.model_worker", retry_after=5)
        return total

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/health/ready")
    async def ready() -> dict[str, Any]:
        # Ready without any worker: it is through this address that the first one has to come.
        cards = pool.cards(clock())
        return {"status": "ready", "models": {card.info.name: card.workers for card in cards}}

    return router


_STATUS = TypeAdapter(WorkerStatus)


async def _ask_status(workers: httpx.AsyncClient, address: str) -> WorkerStatus | None:
    try:
        answer = await workers.post(f"{address}/worker_get_status")
        return _STATUS.validate_json(answer.content) if answer.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LlavaError):
        return None


async def _sweep(pool: WorkerPool, clock: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(pool.timings.lease_s / 4)
        for address in pool.expire(clock()):
            log.warning("%s has been silent for %.0f s and is no longer listed", address, pool.timings.lease_s)


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.")] = CONTROLLER_PORT,
    dispatch_method: Annotated[
        str, typer.Option(help=f"How the next worker is chosen: {' or '.join(POLICIES)}.")
    ] = "shortest_queue",
    lease: Annotated[
        float, typer.Option(min=0.1, help="Seconds of silence after which a worker is no longer listed.")
    ] = WorkerTimings.lease_s,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that running answers have to finish after the first signal.")
    ] = WorkerTimings.drain_s,
) -> None:
    """Know which workers are alive, send requests to them, and answer /v1 for all of them."""
    if dispatch_method not in POLICIES:
        raise typer.BadParameter(f"must be one of {', '.join(POLICIES)}", param_hint="--dispatch-method")
    start_logging()
    try:
        listener = listen(host, port)
    except LlavaError as error:
        print(error.message, file=sys.stderr)
        raise typer.Exit(2) from None
    timings = replace(WorkerTimings(), lease_s=lease, drain_s=drain)
    app = create_app(WorkerPool(policy=POLICIES[dispatch_method], timings=timings))
    log.info("listening on %s", own_address(host, listener))
    asyncio.run(run_server(app, listener, drain_s=timings.drain_s))


if __name__ == "__main__":
    app()
