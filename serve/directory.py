"""Who serves what: the question a client puts to the controller before it streams from a worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from llava_core.config import ClientTimings
from llava_core.errors import LlavaError, NoWorker, UnknownModel
from serve import tracing
from serve.http_errors import error_from
from serve.http_session import HTTP_ERRORS, HttpSession
from serve.protocol import AddressQuery, Known, ModelCard, WorkerAddress, read_models

T = TypeVar("T")

_JSON = {"Content-Type": "application/json"}
_ADDRESS = TypeAdapter(WorkerAddress)
_KNOWN = TypeAdapter(Known)


class Directory(Protocol):
    """Where a client learns of workers: over HTTP from anywhere, straight from the table in the controller."""

    async def cards(self) -> tuple[ModelCard, ...]:
        """What is served now, sorted by name. Raises NoWorker when nobody can tell."""
        ...

    async def pick(self, model: str, exclude: Sequence[str], request_id: str) -> str:
        """The address of a worker for `model`, which the request of this id will go to. Raises UnknownModel or
        NoWorker."""
        ...

    async def is_worth_waiting_for(self, address: str, *, begun: bool) -> bool | None:
        """Whether a worker that says nothing may still answer, or go on with what it has begun; None when nobody
        can tell."""
        ...


class HttpDirectory:
    """Asks a controller at its address; any other OpenAI-compatible server there counts as the one worker."""

    def __init__(self, http: HttpSession, controller: str, timings: ClientTimings) -> None:
        self._http = http
        self._controller = controller.rstrip("/")
        self._timings = timings

    async def cards(self) -> tuple[ModelCard, ...]:
        answer = await self._ask("GET", "/v1/models")
        if answer.status != 200:
            raise self._error(answer)
        return self._read(answer, read_models)

    async def pick(self, model: str, exclude: Sequence[str], request_id: str) -> str:
        query = AddressQuery(model, tuple(exclude))
        answer = await self._ask("POST", "/get_worker_address", asdict(query), {"X-Request-Id": request_id})
        if answer.status == 200:
            return self._read(answer, _ADDRESS.validate_python).address
        if self._is_plain_server(answer):
            if self._controller in exclude:
                raise NoWorker(f"{self._controller} failed just now; try again in a moment", retry_after=1)
            return self._controller
        raise self._error(answer)

    async def is_worth_waiting_for(self, address: str, *, begun: bool) -> bool | None:
        try:
            answer = await self._ask("POST", "/worker_is_worth_waiting_for", {"worker_name": address, "begun": begun})
            return self._read(answer, _KNOWN.validate_python).exist if answer.status == 200 else None
        except NoWorker:
            return None

    async def _ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> _Said:
        content = None if body is None else json.dumps(body).encode()
        try:
            answer = await self._http.send(
                method,
                self._controller + path,
                content,
                {**_JSON, **tracing.headers(), **(headers or {})},
                limit_s=self._timings.control_s,
            )
            try:
                return _Said(answer.status, answer.headers, await answer.read())
            finally:
                answer.close()
        except (*HTTP_ERRORS, ValueError) as cause:
            raise NoWorker(
                f"the controller at {self._controller} cannot be reached; is it running?", retry_after=1
            ) from cause

    def _is_plain_server(self, answer: _Said) -> bool:
        """No such route: a controller has it, and would have called the model unknown. One that does not let us ask may
        still answer at /v1, as any server would."""
        if answer.status in (401, 403):
            return True
        return answer.status in (404, 405) and f'"{UnknownModel.__name__}"' not in answer.body.decode(
            "utf-8", "replace"
        )

    def _read(self, answer: _Said, reader: Callable[[Any], T]) -> T:
        try:
            return reader(json.loads(answer.body))
        except (ValueError, RecursionError):
            raise NoWorker(f"what answers at {self._controller} is no controller and no model server") from None

    def _error(self, answer: _Said) -> LlavaError:
        return error_from(answer.status, answer.headers, answer.body, source=self._controller)


@dataclass(frozen=True)
class _Said:
    status: int
    headers: Mapping[str, str]
    body: bytes
