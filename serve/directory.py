"""Who serves what: the question a client puts to the controller before it streams from a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import httpx
from pydantic import TypeAdapter

from llava_core.config import ClientTimings
from llava_core.errors import LlavaError, NoWorker, UnknownModel
from serve.http_errors import error_from
from serve.protocol import AddressQuery, Known, ModelCard, WorkerAddress, read_models

T = TypeVar("T")

_ADDRESS = TypeAdapter(WorkerAddress)
_KNOWN = TypeAdapter(Known)


class Directory(Protocol):
    """Where a client learns of workers: over HTTP from anywhere, straight from the table in the controller."""

    async def cards(self) -> tuple[ModelCard, ...]:
        """What is served now, sorted by name. Raises NoWorker when nobody can tell."""
        ...

    async def pick(self, model: str, exclude: Sequence[str]) -> str:
        """The address of a worker for `model`. Raises UnknownModel or NoWorker."""
        ...

    async def is_worth_waiting_for(self, address: str, *, begun: bool) -> bool | None:
        """Whether a worker that says nothing may still answer, or go on with what it has begun; None when nobody
        can tell."""
        ...


class HttpDirectory:
    """Asks a controller at its address; any other OpenAI-compatible server there counts as the one worker."""

    def __init__(self, http: httpx.AsyncClient, controller: str, timings: ClientTimings) -> None:
        self._http = http
        self._controller = controller.rstrip("/")
        self._timings = timings

    async def cards(self) -> tuple[ModelCard, ...]:
        answer = await self._ask("GET", "/v1/models")
        if answer.status_code != 200:
            raise self._error(answer)
        return self._read(answer, read_models)

    async def pick(self, model: str, exclude: Sequence[str]) -> str:
        query = AddressQuery(model, tuple(exclude))
        answer = await self._ask("POST", "/get_worker_address", asdict(query))
        if answer.status_code == 200:
            return self._read(answer, _ADDRESS.validate_python).address
        if self._is_plain_server(answer):
            if self._controller in exclude:
                raise NoWorker(f"{self._controller} failed just now; try again in a moment", retry_after=1)
            return self._controller
        raise self._error(answer)

    async def is_worth_waiting_for(self, address: str, *, begun: bool) -> bool | None:
        try:
            answer = await self._ask("POST", "/worker_is_worth_waiting_for", {"worker_name": address, "begun": begun})
            return self._read(answer, _KNOWN.validate_python).exist if answer.status_code == 200 else None
        except NoWorker:
            return None

    async def _ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        try:
            return await self._http.request(
                method,
                self._controller + path,
                json=body,
                timeout=httpx.Timeout(self._timings.control_s, connect=self._timings.connect_s),
            )
        except (httpx.HTTPError, httpx.InvalidURL) as cause:
            raise NoWorker(
                f"the controller at {self._controller} cannot be reached; is it running?", retry_after=1
            ) from cause

    def _is_plain_server(self, answer: httpx.Response) -> bool:
        """No such route: a controller has it, and would have called the model unknown."""
        return answer.status_code in (404, 405) and f'"{UnknownModel.__name__}"' not in answer.text

    def _read(self, answer: httpx.Response, reader: Callable[[Any], T]) -> T:
        try:
            return reader(answer.json())
        except (ValueError, RecursionError):
            raise NoWorker(f"what answers at {self._controller} is no controller and no model server") from None

    def _error(self, answer: httpx.Response) -> LlavaError:
        return error_from(answer.status_code, answer.headers, answer.content, source=self._controller)
