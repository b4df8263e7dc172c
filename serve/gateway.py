"""All models at one OpenAI-compatible address: the controller mounts these routes over its own table of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.types import Scope

from llava_core.config import RequestLimits, ServerLimits
from serve.client import Client
from serve.inspecting import inspect_routes
from serve.metrics import Metrics
from serve.protocol import ModelCard
from serve.remote_inspector import ATTENTION_PATH, PROMPT_PATH
from serve.v1 import CHAT_PATH, v1_routes
from serve.worker_pool import WorkerPool


@dataclass(frozen=True)
class PoolDirectory:
    """The table itself, for a client in the same process: no request to oneself on the way to a worker."""

    pool: WorkerPool
    clock: Callable[[], float]

    async def cards(self) -> tuple[ModelCard, ...]:
        return self.pool.cards(self.clock())

    async def pick(self, model: str, exclude: Sequence[str], request_id: str) -> str:
        return self.pool.pick(model, self.clock(), exclude)

    async def is_worth_waiting_for(self, address: str, *, begun: bool) -> bool | None:
        return self.pool.is_worth_waiting_for(address, self.clock(), begun=begun)


def is_chat(scope: Scope) -> bool:
    """Whether a request has a model compute; looking at what is served is free."""
    return scope["method"] == "POST" and scope["path"] in (CHAT_PATH, PROMPT_PATH, ATTENTION_PATH)


def gateway_routes(
    client: Client,
    *,
    limits: RequestLimits | None = None,
    server: ServerLimits | None = None,
    metrics: Metrics | None = None,
) -> APIRouter:
    """`/v1/models`, `/v1/chat/completions` and `/v1/inspect` over whichever workers the client finds."""
    router = v1_routes(client, limits=limits, server=server, metrics=metrics)
    both = APIRouter()
    both.include_router(router)
    both.include_router(inspect_routes(client.inspector, limits=limits))
    return both
