"""What a server counts and measures, for Prometheus; under vLLM's names where it has one, as dashboards expect them."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from llava_core.types import EngineMemory, Usage
from serve.http_frame import Endpoint
from serve.protocol import Load

Outcome = Literal["ok", "error", "rejected", "cancelled"]
UNKNOWN = ""
"""The label of models that nobody serves: what strangers ask for makes no new series."""

_FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20)
_WHOLE_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


class _Histogram:
    """Cheaper for each number than prometheus_client's own, since one is taken for every token."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def take(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        total, buckets = 0, list[tuple[str, float]]()
        for bound, count in zip((*map(str, map(float, self._bounds)), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self._sum)


@dataclass
class _Model:
    first: _Histogram = field(default_factory=lambda: _Histogram(_FIRST_S))
    between: _Histogram = field(default_factory=lambda: _Histogram(_BETWEEN_S))
    whole: _Histogram = field(default_factory=lambda: _Histogram(_WHOLE_S))
    prompt: _Histogram = field(default_factory=lambda: _Histogram(_TOKENS))
    generated: _Histogram = field(default_factory=lambda: _Histogram(_TOKENS))
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    streamed_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter[str])


_HISTOGRAMS = {
    "first": ("vllm:time_to_first_token_seconds", "Seconds from a request to its first token"),
    "between": ("vllm:inter_token_latency_seconds", "Seconds between two pieces of an answer"),
    "whole": ("vllm:e2e_request_latency_seconds", "Seconds from a request to the end of its answer"),
    "prompt": ("vllm:request_prompt_tokens", "Tokens of a request's prompt"),
    "generated": ("vllm:request_generation_tokens", "Tokens of a request's answer"),
}
_COUNTERS = {
    "prompt_tokens": ("vllm:prompt_tokens", "Prompt tokens"),
    "generated_tokens": ("vllm:generation_tokens", "Generated tokens"),
    "cached_tokens": ("vllm:prefix_cache_hits", "Prompt tokens that did not have to be computed again"),
    "image_tokens": ("llava:image_tokens", "Prompt tokens that are pictures"),
    "streamed_tokens": ("llava:streamed_tokens", "Tokens that went out, of running answers too"),
}


class Metrics(Collector):
    """One server's. `load` tells how busy it is when somebody looks; `events` counts what else is worth telling."""

    def __init__(
        self,
        load: Callable[[], Sequence[Load]],
        *,
        memory: Callable[[], tuple[str, EngineMemory] | None] = lambda: None,
    ) -> None:
        """`memory` tells of a model how full its device is, where somebody knows."""
        self._load = load
        self._memory = memory
        self._models: dict[str, _Model] = {}
        self._received = 0
        self._ended: Counter[tuple[str, Outcome]] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._failed: Counter[tuple[str, str]] = Counter()
        self.events: Counter[str] = Counter()

    def received(self) -> None:
        self._received += 1

    def rejected(self) -> None:
        """A request ended before it was known what it asked for."""
        self._ended[UNKNOWN, "rejected"] += 1

    def left(self) -> None:
        """Its sender went away before it was whole."""
        self._ended[UNKNOWN, "cancelled"] += 1

    def watch(self, model: str) -> Watched:
        """For one request, from when it has been read."""
        return Watched(self, model)

    def write(self) -> bytes:
        return generate_latest(self._registry)

    def endpoint(self) -> Endpoint:
        async def metrics(http: HttpRequest) -> Response:
            return Response(self.write(), media_type=CONTENT_TYPE_LATEST)

        return metrics

    def collect(self) -> Iterable[Metric]:
        loads = self._load()
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests being answered", labels=["model_name"])
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait", labels=["model_name"])
        workers = GaugeMetricFamily("llava:workers", "Workers that serve a model", labels=["model_name"])
        for load in loads:
            running.add_metric([load.model], load.running)
            waiting.add_metric([load.model], load.waiting)
            if load.workers is not None:
                workers.add_metric([load.model], load.workers)
        yield from (running, waiting, workers)
        yield from self._memories()
        for name, (title, told) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(title, told, labels=["model_name"])
            for model, numbers in self._models.items():
                getattr(numbers, name).add_to(histogram, [model])
            yield histogram
        for name, (title, told) in _COUNTERS.items():
            counter = CounterMetricFamily(title, told, labels=["model_name"])
            for model, numbers in self._models.items():
                counter.add_metric([model], getattr(numbers, name))
            yield counter
        finished = CounterMetricFamily(
            "vllm:request_success", "Whole answers, by how they ended", labels=["model_name", "finished_reason"]
        )
        for model, numbers in self._models.items():
            for reason, count in numbers.finished.items():
                finished.add_metric([model, reason], count)
        yield finished
        queries = CounterMetricFamily(
            "vllm:prefix_cache_queries",
            "Prompt tokens that were looked for among those computed",
            labels=["model_name"],
        )
        for model, numbers in self._models.items():
            queries.add_metric([model], numbers.prompt_tokens)
        yield queries
        yield CounterMetricFamily("llava:requests_received", "Chats that came in", value=self._received)
        ended = CounterMetricFamily(
            "llava:requests_ended", "Chats by what came of them", labels=["model_name", "outcome"]
        )
        for (model, outcome), count in self._ended.items():
            ended.add_metric([model, outcome], count)
        yield ended
        failed = CounterMetricFamily("llava:errors", "Chats that failed, by class", labels=["model_name", "error"])
        for (model, code), count in self._failed.items():
            failed.add_metric([model, code], count)
        yield failed
        events = CounterMetricFamily("llava:events", "Retries, answers that went on elsewhere, …", labels=["event"])
        for event, count in self.events.items():
            events.add_metric([event], count)
        yield events

    def _memories(self) -> Iterable[Metric]:
        told = self._memory()
        if told is None:
            return
        name, memory = told
        figures = [
            ("vllm:kv_cache_usage_perc", "Share of the room for chats that running ones take", "kv_running"),
            (
                "vllm:gpu_cache_usage_perc",
                "The same, as dashboards for older versions of vLLM ask for it",
                "kv_running",
            ),
            ("llava:kv_cache_kept_perc", "Share that chats kept for their next turn take", "kv_parked"),
            ("llava:device_memory_used_bytes", "Memory of the device that is taken, by anybody", "device_used"),
            ("llava:device_memory_bytes", "Memory of the device", "device_total"),
        ]
        for title, what, field_name in figures:
            value: float = getattr(memory, field_name)
            if field_name.startswith("kv_"):
                value /= max(1, memory.kv_total)
            gauge = GaugeMetricFamily(title, what, labels=["model_name"])
            gauge.add_metric([name], value)
            yield gauge

    def failed(self, model: str, code: str) -> None:
        self._failed[model, code] += 1

    def of(self, model: str) -> _Model:
        return self._models.setdefault(model, _Model())

    def ended(self, model: str, outcome: Outcome) -> None:
        self._ended[model, outcome] += 1


class Watched:
    """One request, told of at its first piece, each further one and its end."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._began = time.monotonic()
        self._last: float | None = None
        self._numbers: _Model | None = None

    def took(self, tokens: int = 1) -> None:
        """A piece of the answer came, so that somebody does serve this model."""
        now = time.monotonic()
        if self._last is None or self._numbers is None:
            self._numbers = self._metrics.of(self._model)
            self._numbers.first.take(now - self._began)
        else:
            self._numbers.between.take(now - self._last)
        self._numbers.streamed_tokens += tokens
        self._last = now

    def failed(self, code: str) -> None:
        self._metrics.failed(self._model if self._numbers is not None else UNKNOWN, code)

    def ended(self, outcome: Outcome, *, reason: str = "", usage: Usage | None = None) -> None:
        numbers = self._numbers
        self._metrics.ended(self._model if numbers is not None else UNKNOWN, outcome)
        if numbers is None:
            return
        numbers.whole.take(time.monotonic() - self._began)
        if reason:
            numbers.finished[reason] += 1
        if usage is not None:
            numbers.prompt.take(usage.prompt_tokens)
            numbers.generated.take(usage.completion_tokens)
            numbers.prompt_tokens += usage.prompt_tokens
            numbers.generated_tokens += usage.completion_tokens
            numbers.cached_tokens += usage.cached_tokens
            numbers.image_tokens += usage.image_tokens
