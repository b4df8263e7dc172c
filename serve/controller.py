"""Knows which workers are alive and sends requests to them; its /v1, on a port of its own, speaks for all of them.
python -m serve.controller --host 127.0.0.1 --port 21001 --dispatch-method shortest_queue
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from fastapi import APIRouter, FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from llava_core.config import (
    CONTROL_PORT,
    CONTROLLER_PORT,
    BreakerLimits,
    ClientTimings,
    RequestLimits,
    ServerLimits,
    WorkerTimings,
)
from llava_core.errors import LlavaError, NoWorker
from serve import moderation_flags as judging
from serve import quota_flags as allowing
from serve import tracing
from serve.client import Client
from serve.credentials import check_exposure, is_loopback, make_token
from serve.dispatch import POLICIES
from serve.error_handlers import add_error_handlers, wrong_field_response
from serve.gate import Gate
from serve.gateway import PoolDirectory, gateway_routes, is_chat
from serve.http_frame import Endpoint, frame
from serve.key_ring import KeyRing, keys_file
from serve.membership import waking_clock, watch
from serve.metrics import Metrics
from serve.moderation import Moderation
from serve.protocol import (
    AddressQuery,
    Goodbye,
    HeartBeat,
    Known,
    ModelNames,
    Registration,
    Waiting,
    WorkerAddress,
    WorkerList,
    WorkerName,
    WorkerStatus,
)
from serve.quota import Quota
from serve.quotas import Quotas
from serve.server import listen, own_address, run, run_server, start_logging
from serve.v1 import CHAT_PATH, chat_endpoint
from serve.worker_lines import WorkerLines
from serve.worker_pool import WorkerPool

# Plain help: boxes cut long option names short.
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
log = logging.getLogger("serve.controller")


def create_app(
    pool: WorkerPool,
    *,
    clock: Callable[[], float] | None = None,
    limits: RequestLimits | None = None,
    server: ServerLimits | None = None,
    client_timings: ClientTimings | None = None,
    breakers: BreakerLimits | None = None,
    token: str | None = None,
    keys: KeyRing | None = None,
    local: bool = False,
    moderation: Moderation | None = None,
    quotas: Quotas | None = None,
    gate: Gate | None = None,
) -> FastAPI:
    """The controller's app, and as `app.state.public` its face for everybody, on which there is no control plane. With
    a `token`, only who shows it may register workers and ask about them; with `keys`, the API asks for one of them. A
    `local` one answers to names of this machine only. `gate` is the control plane's, where it is not the same."""
    limits, server = limits or RequestLimits(), server or ServerLimits()
    clock = clock or waking_clock()
    directory = PoolDirectory(pool, clock)
    client = Client("", timings=client_timings, directory=directory, breakers=breakers, credential=token)
    shown = {"Authorization": f"Bearer {token}"} if token else None
    workers = httpx.AsyncClient(timeout=pool.timings.control_timeout_s, trust_env=False, headers=shown)
    lines = WorkerLines(pool, clock)
    metrics = Metrics(lambda: pool.load(clock()))
    client.events = metrics.events
    if moderation is not None:
        client.moderation, moderation.events = moderation, metrics.events

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        watching = asyncio.create_task(watch(pool, clock, workers))
        yield
        watching.cancel()
        await client.aclose()
        await workers.aclose()

    app = FastAPI(
        title="LLaVA Serve controller", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    add_error_handlers(app)
    chats = chat_endpoint(
        client,
        limits=limits,
        server=server,
        metrics=metrics,
        refusal=lambda _: client.refusal(pool.places(clock())),
    )
    direct = {CHAT_PATH: chats, "/get_worker_address": _address(pool, clock)}
    everybodys = Gate(token, keys, local=local)
    frame(app, limits.max_body_bytes, server, direct=direct, gate=gate or everybodys, quotas=quotas)
    app.state.lines = lines
    app.state.public = public = FastAPI(
        title="LLaVA Serve", docs_url=None, redoc_url=None, redirect_slashes=False, openapi_url=None
    )
    add_error_handlers(public)
    frame(public, limits.max_body_bytes, server, direct={CHAT_PATH: chats}, gate=everybodys, quotas=quotas)
    public.include_router(_health_routes(pool, clock))
    public.include_router(gateway_routes(client, limits=limits, server=server, metrics=metrics))
    app.include_router(_control_routes(pool, clock, workers, lines))
    app.include_router(_health_routes(pool, clock))
    app.include_router(gateway_routes(client, limits=limits, server=server, metrics=metrics))
    app.get("/metrics")(metrics.endpoint())
    return app


def _control_routes(
    pool: WorkerPool, clock: Callable[[], float], workers: httpx.AsyncClient, lines: WorkerLines
) -> APIRouter:
    router = APIRouter()

    @router.post("/register_worker")
    async def register_worker(registration: Registration) -> Known:
        if pool.register(registration, clock()):
            names = ", ".join(map(ascii, registration.worker_status.model_names))
            log.info("registered %s with %s", registration.worker_name, names)
        return Known(True)

    @router.post("/hold_worker_line")
    async def hold_worker_line(worker: WorkerName) -> Response:
        if not pool.lists(worker.worker_name, clock()):
            raise HTTPException(409, f"{worker.worker_name[:200]} is not registered; register first")
        return lines.hold(worker.worker_name)

    @router.post("/receive_heart_beat")
    async def receive_heart_beat(beat: HeartBeat) -> Known:
        return Known(pool.heartbeat(beat.worker_name, beat.queue_length, clock()))

    @router.post("/deregister_worker")
    async def deregister_worker(worker: Goodbye) -> Known:
        if pool.deregister(worker.worker_name, clock(), worker.drain_s):
            log.info("%s said goodbye", worker.worker_name)
        return Known(False)

    @router.post("/list_workers")
    async def list_workers() -> WorkerList:
        return WorkerList(pool.listed(clock()))

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
                pool.lose(address, clock())
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

    return router


def _health_routes(pool: WorkerPool, clock: Callable[[], float]) -> APIRouter:
    router = APIRouter()

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/health/ready")
    async def ready() -> dict[str, Any]:
        # Ready without any worker: it is through this address that the first one has to come.
        cards = pool.cards(clock())
        return {"status": "ready", "models": {card.info.name: card.workers for card in cards}}

    return router


def _address(pool: WorkerPool, clock: Callable[[], float]) -> Endpoint:
    """`/get_worker_address` with less ado: it is asked for before every answer."""

    async def get_worker_address(http: HttpRequest) -> Response:
        content_type = http.headers.get("content-type", "")
        body = await http.body()
        try:
            query = _QUERY.validate_json(
                body if content_type.partition(";")[0].strip().lower() == "application/json" else b""
            )
        except ValidationError as error:
            return wrong_field_response(error.errors())
        with tracing.span("pick a worker", parent=tracing.parent_of(http.headers), kind="server"):
            address = pool.pick(query.model, clock(), query.exclude)
        log.info("chat %s goes to %s", http.scope["request_id"], address)
        return JSONResponse({"address": address})

    return get_worker_address


_QUERY = TypeAdapter(AddressQuery)
_STATUS = TypeAdapter(WorkerStatus)


async def _ask_status(workers: httpx.AsyncClient, address: str) -> WorkerStatus | None:
    try:
        answer = await workers.post(f"{address}/worker_get_status")
        return _STATUS.validate_json(answer.content) if answer.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LlavaError):
        return None


@app.command()
def main(
    host: Annotated[str, typer.Option(help="Address of the API; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the API; 0 for any free one.")] = CONTROLLER_PORT,
    control_host: Annotated[
        str, typer.Option(help="Address of the control plane, which workers, page and command line talk to.")
    ] = "127.0.0.1",
    control_port: Annotated[int, typer.Option(help="Port of the control plane; 0 for any free one.")] = CONTROL_PORT,
    dispatch_method: Annotated[
        str, typer.Option(help=f"How the next worker is chosen: {' or '.join(POLICIES)}.")
    ] = "shortest_queue",
    lease: Annotated[
        float, typer.Option(min=0.1, help="Seconds of silence after which a worker is no longer listed.")
    ] = WorkerTimings.lease_s,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that running answers have to finish after the first signal.")
    ] = WorkerTimings.drain_s,
    keys: Annotated[
        Path | None,
        typer.Option(help="The file with the API keys that python -m serve.keys makes.", show_default="data/keys.json"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let a network use the API though nobody is asked for a key.")
    ] = False,
    key_rate: allowing.KeyRate = None,
    key_at_once: allowing.KeyAtOnce = None,
    address_rate: allowing.AddressRate = None,
    address_at_once: allowing.AddressAtOnce = None,
    rate_storage: allowing.Storage = allowing.IN_MEMORY,
    trusted_proxies: allowing.Proxies = 0,
    moderation_url: judging.Url = None,
    moderation_model: judging.Model = None,
    moderation_classifier: judging.ByFunction = None,
    moderation_fail_open: judging.FailOpen = None,
    moderation_hold_answers: judging.HoldAnswers = None,
) -> None:
    """Know which workers are alive, send requests to them, and answer /v1 for all of them."""
    if dispatch_method not in POLICIES:
        raise typer.BadParameter(f"must be one of {', '.join(POLICIES)}", param_hint="--dispatch-method")
    start_logging()
    tracing.start_tracing("controller")
    try:
        token, ring = make_token(), KeyRing(keys or keys_file())
        remedy = "make a key with python -m serve.keys add NAME"
        judge = judging.moderation(
            moderation_url, moderation_model, moderation_classifier, moderation_fail_open, moderation_hold_answers
        )
        check_exposure(host, guarded=ring.asks, insecure=insecure, remedy=remedy)
        quotas = Quotas(
            key=Quota(key_rate, key_at_once),
            address=Quota(address_rate, address_at_once),
            of_key=ring.quota_of,
            applies=is_chat,
            storage=rate_storage,
            proxies=trusted_proxies,
        )
        listener, public = listen(control_host, control_port), listen(host, port)
    except LlavaError as error:
        print(error.message, file=sys.stderr)
        raise typer.Exit(2) from None
    timings = replace(WorkerTimings(), lease_s=lease, drain_s=drain)
    local, here = is_loopback(host) and not insecure, is_loopback(control_host)
    app = create_app(
        WorkerPool(policy=POLICIES[dispatch_method], timings=timings),
        token=token,
        keys=ring,
        local=local,
        moderation=judge,
        quotas=quotas,
        # On a network, the API on the control plane's port is for our own processes; others have the one beside it.
        gate=Gate(token, ring, api="key" if here else "control", local=here and not insecure),
    )
    log.info("the API is at %s/v1", own_address(host, public))
    log.info("the control plane, for workers and the page, is at %s", own_address(control_host, listener))

    async def end_lines() -> None:
        app.state.lines.close()

    beside = app.state.public, public
    run(run_server(app, listener, drain_s=timings.drain_s, before_drain=end_lines, beside=beside))
    tracing.stop_tracing()


if __name__ == "__main__":
    app()
