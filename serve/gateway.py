"""All models at one OpenAI-compatible address: the controller mounts these routes over its own table of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter

from llava_core.config import RequestLimits, ServerLimits
from serve.client import Client
from serve.protocol import ModelCard
from serve.v1 import v1_routes
from serve.worker_pool import WorkerPool


@dataclass(frozen=True)
class PoolDirectory:
    """The table itself, for a client in the same process: no request to oneself on the way to a worker."""

    pool: WorkerPool
    clock: Callable[[], float]

    async def cards(self) -> tuple[ModelCard, ...]:
        return self.pool.cards(self.clock())

    async def pick(self, model: str, exclude: Sequence[str]) -> str:
        return self.pool.pick(model, self.clock(), exclude)

    async def is_worth_waiting_for(self, address: str, *, begun: bool) -> bool | None:
        return self.pool.is_worth_waiting_for(address, self.clock(), begun=begun)


def gateway_routes(
    client: Client, *, limits: RequestLimits | None = None, server: ServerLimits | None = None
) -> APIRouter:
    """`/v1/models` and `/v1/chat/completions` over whichever workers the client finds."""
    return v1_routes(client, limits=limits, server=server)
