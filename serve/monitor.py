"""What a controller's workers are doing: who is listed, and the figures that each of them tells."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter, ValidationError

from llava_core.config import ClientTimings
from llava_core.errors import LlavaError, NoWorker
from serve.http_errors import error_from
from serve.http_session import HTTP_ERRORS, HttpSession, read_piece
from serve.protocol import ListedWorker, WorkerList

_LIST = TypeAdapter(WorkerList)
_MOST_BYTES = 4 * 1024 * 1024
_AT_ONCE = 16


@dataclass(frozen=True)
class Figures:
    """Of one server: `values` by name and labels, as Prometheus writes them."""

    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    def sum(self, name: str, **labels: str) -> float | None:
        """Over all samples of that name with these labels; None where there is none."""
        wanted = labels.items()
        found = [value for (own, has), value in self.values.items() if own == name and wanted <= set(has)]
        return sum(found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums over everything but one label."""
        sums: dict[str, float] = {}
        for (own, has), value in self.values.items():
            if own == name:
                key = dict(has).get(label, "")
                sums[key] = sums.get(key, 0.0) + value
        return sums


class Monitor:
    def __init__(self, http: HttpSession, controller: str, timings: ClientTimings) -> None:
        self._http = http
        self._controller = controller.rstrip("/")
        self._timings = timings
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def workers(self) -> tuple[ListedWorker, ...]:
        """Raises NoWorker where the controller cannot be asked, and what it answers with."""
        body = await self._ask("POST", f"{self._controller}/list_workers")
        try:
            return _LIST.validate_json(body).workers
        except ValidationError:
            raise NoWorker(f"what answers at {self._controller} is no controller that lists its workers") from None

    async def figures(self, addresses: Sequence[str]) -> list[Figures | None]:
        """Of each of these workers; None of those that do not tell."""
        return list(await asyncio.gather(*map(self._figures, addresses)))

    async def own_figures(self) -> Figures | None:
        """The controller's."""
        return await self._figures(self._controller)

    async def _figures(self, address: str) -> Figures | None:
        async with self._places:
            try:
                body = await self._ask("GET", f"{address}/metrics")
                return await asyncio.to_thread(read_figures, body.decode("utf-8", "replace"))
            except (LlavaError, ValueError):
                return None

    async def _ask(self, method: str, url: str) -> bytes:
        try:
            answer = await self._http.send(method, url, limit_s=self._timings.control_s)
            try:
                data = bytearray()
                while (piece := await read_piece(answer)) and len(data) <= _MOST_BYTES:
                    data += piece
            finally:
                answer.close()
        except (*HTTP_ERRORS, ValueError) as cause:
            raise NoWorker(f"{url} cannot be reached; is it running?", retry_after=1) from cause
        if answer.status != 200:
            raise error_from(answer.status, answer.headers, bytes(data), source=url)
        return bytes(data)


def read_figures(text: str) -> Figures:
    """Raises ValueError where this is nothing that Prometheus would read."""
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                values[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return Figures(values)
