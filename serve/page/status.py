"""What the Status tab shows: every worker's figures with their last minutes, asked once for all who look.

While somebody looks, and a while after, one task asks controller and workers every few seconds; visitors get what it
last put together. Addresses stay here: workers are told apart by their model and a number.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from llava_core.config import StatusLimits
from llava_core.errors import LlavaError
from llava_core.types import ModelInfo
from serve.page.source import AnswerSource


class Status(Protocol):
    @property
    def model_names(self) -> tuple[str, ...]: ...

    @property
    def queue_length(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    @property
    def models(self) -> tuple[ModelInfo, ...]: ...


class Listed(Protocol):
    @property
    def worker_name(self) -> str: ...

    @property
    def status(self) -> Status: ...

    @property
    def silent_s(self) -> float: ...

    @property
    def late(self) -> bool: ...


class Figures(Protocol):
    def sum(self, name: str, **labels: str) -> float | None: ...

    def by(self, name: str, label: str) -> Mapping[str, float]: ...


class Monitor(Protocol):
    """`serve.monitor.Monitor`, as seen from here."""

    async def workers(self) -> Sequence[Listed]: ...

    async def figures(self, addresses: Sequence[str]) -> Sequence[Figures | None]: ...

    async def own_figures(self) -> Figures | None: ...


@runtime_checkable
class Monitored(Protocol):
    """A source of answers that knows what its workers are doing."""

    @property
    def monitor(self) -> Monitor: ...


@dataclass
class _Worker:
    """One worker over time."""

    number: int
    status: Status
    seen: float
    state: Literal["ready", "late", "gone"] = "ready"
    silent_s: float = 0.0
    figures: Figures | None = None
    told: float = 0.0
    """When it last told its figures."""
    tokens_s: float = 0.0
    counted: float | None = None
    tokens: deque[float] = field(default_factory=deque[float])
    running: deque[float] = field(default_factory=deque[float])


class StatusBoard:
    def __init__(
        self,
        source: AnswerSource,
        limits: StatusLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._monitor = source.monitor if isinstance(source, Monitored) else None
        self._limits = limits or StatusLimits()
        self._clock = clock
        self._sleep = sleep
        self._workers: dict[str, _Worker] = {}
        self._born = 0
        self._trouble = ""
        self._own: Figures | None = None
        self._tokens: deque[float] = deque(maxlen=self._limits.points)
        self._asked = clock()
        self._report: dict[str, Any] | None = None
        self._first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def report(self) -> dict[str, Any]:
        """The latest figures. Waits only for the very first."""
        if self._monitor is None:
            return {"trouble": "what answers here has no workers to tell of", "workers": [], "totals": {}}
        self._asked = self._clock()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_asking(self._monitor))
        if self._report is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.first_s):
                    await self._first.wait()
        return self._report or {"trouble": "still asking the workers", "workers": [], "totals": {}}

    async def look(self, monitor: Monitor) -> None:
        """Ask everybody once."""
        now = self._clock()
        try:
            listed = await monitor.workers()
            self._trouble = ""
        except LlavaError as error:
            listed, self._trouble = None, error.message
        if listed is not None:
            self._take(listed, now)
        there = [address for address, worker in self._workers.items() if worker.state != "gone"]
        figures = await monitor.figures(there)
        self._own = await monitor.own_figures()
        now = self._clock()
        for address, told in zip(there, figures, strict=True):
            self._count(self._workers[address], told, now)
        self._tokens.append(round(sum(worker.tokens_s for worker in self._workers.values()), 1))
        self._report = self._written()
        self._first.set()

    async def _keep_asking(self, monitor: Monitor) -> None:
        while self._clock() - self._asked < self._limits.idle_s:
            await self.look(monitor)
            await self._sleep(self._limits.poll_s)

    def _take(self, listed: Sequence[Listed], now: float) -> None:
        for one in listed[: self._limits.workers]:
            worker = self._workers.get(one.worker_name)
            if worker is None:
                self._born += 1
                points = self._limits.points
                worker = _Worker(self._born, one.status, now, tokens=deque(maxlen=points), running=deque(maxlen=points))
                self._workers[one.worker_name] = worker
            worker.status, worker.seen, worker.silent_s = one.status, now, one.silent_s
            worker.state = "late" if one.late else "ready"
        names = {one.worker_name for one in listed}
        for address, worker in list(self._workers.items()):
            if address not in names:
                if worker.state != "gone":
                    worker.state, worker.seen, worker.tokens_s, worker.figures = "gone", now, 0.0, None
                worker.silent_s = now - worker.seen
                if worker.silent_s > self._limits.gone_s:
                    del self._workers[address]

    def _count(self, worker: _Worker, told: Figures | None, now: float) -> None:
        if told is not None:
            counted = told.sum("llava:streamed_tokens_total") or 0.0
            if worker.counted is not None and now > worker.told:
                # A worker that was started anew counts from nothing.
                worker.tokens_s = max(0.0, counted - worker.counted) / (now - worker.told)
            worker.figures, worker.told, worker.counted = told, now, counted
        else:
            worker.tokens_s = 0.0
            if worker.state == "ready" and worker.told:
                worker.state = "late"
        worker.tokens.append(round(worker.tokens_s, 1))
        worker.running.append(_load(worker)[0])

    def _written(self) -> dict[str, Any]:
        workers = sorted(self._workers.values(), key=lambda worker: (worker.status.model_names, worker.number))
        running, waiting = (sum(each) for each in zip(*map(_load, workers), strict=True)) if workers else (0, 0)
        errors: dict[str, int] = {}
        sources = [worker.figures for worker in workers]
        for figures in (*sources, self._own):
            for code, count in (figures.by("llava:errors_total", "error") if figures else {}).items():
                errors[code] = errors.get(code, 0) + int(count)
        events = self._own.by("llava:events_total", "event") if self._own else {}
        return {
            "trouble": self._trouble,
            "poll_s": self._limits.poll_s,
            "workers": [_row(worker) for worker in workers],
            "totals": {
                "there": sum(worker.state != "gone" for worker in workers),
                "late": sum(worker.state == "late" for worker in workers),
                "models": len({name for worker in workers if worker.state != "gone" for name in _names(worker)}),
                "running": running,
                "waiting": waiting,
                "tokens_s": self._tokens[-1] if self._tokens else 0.0,
                "tokens": list(self._tokens),
                "cache": _share(sources),
                "answers": int(sum(figures.sum("vllm:request_success_total") or 0 for figures in sources if figures)),
                "errors": errors,
                "events": {name: int(count) for name, count in events.items()},
            },
        }


def _names(worker: _Worker) -> tuple[str, ...]:
    return worker.status.model_names


def _load(worker: _Worker) -> tuple[int, int]:
    """Running and waiting requests."""
    if worker.state == "gone":
        return 0, 0
    figures, status = worker.figures, worker.status
    running = figures.sum("vllm:num_requests_running") if figures else None
    if running is None:
        return min(status.queue_length, status.capacity), max(0, status.queue_length - status.capacity)
    return int(running), int((figures.sum("vllm:num_requests_waiting") if figures else None) or 0)


def _row(worker: _Worker) -> dict[str, Any]:
    figures, info = worker.figures, worker.status.models[0] if worker.status.models else None
    running, waiting = _load(worker)

    def told(name: str) -> float | None:
        return figures.sum(name) if figures else None

    return {
        "id": worker.number,
        "model": ", ".join(_names(worker)),
        "engine": info.engine if info else "",
        "device": info.device if info else "",
        "dtype": info.dtype if info else "",
        "context": info.context_length if info else 0,
        "state": worker.state,
        "silent_s": round(worker.silent_s, 1),
        "running": running,
        "waiting": waiting,
        "capacity": worker.status.capacity,
        "tokens_s": round(worker.tokens_s, 1),
        "tokens": list(worker.tokens),
        "load": list(worker.running),
        "cache": _share([figures]),
        "room": told("vllm:kv_cache_usage_perc"),
        "kept": told("llava:kv_cache_kept_perc"),
        "memory": told("process_resident_memory_bytes"),
        "device_used": told("llava:device_memory_used_bytes"),
        "device_total": told("llava:device_memory_bytes"),
        "answers": int(told("vllm:request_success_total") or 0),
        "errors": {
            code: int(count) for code, count in (figures.by("llava:errors_total", "error") if figures else {}).items()
        },
    }


def _share(sources: Sequence[Figures | None]) -> float | None:
    """Prompt tokens that did not have to be computed again."""
    known = [figures for figures in sources if figures is not None]
    asked = sum(figures.sum("vllm:prompt_tokens_total") or 0 for figures in known)
    hits = sum(figures.sum("vllm:prefix_cache_hits_total") or 0 for figures in known)
    return hits / asked if asked else None
