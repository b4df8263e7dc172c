"""Traces for OpenTelemetry, asked for by its usual environment variables; without them nothing of it is even imported.

A trace goes from who asks (page, command line, or a caller's own `traceparent`) through controller and worker to the
phases of the engine. Spans tell of counts and times, never of what was said.
"""

from __future__ import annotations

import contextvars
import importlib
import logging
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from llava_core.errors import LlavaError
from llava_core.types import Phases, Request, Usage

log = logging.getLogger(__name__)

HEADER = "traceparent"
Kind = Literal["server", "client", "internal"]
Attributes = Mapping[str, str | int | float | bool]

_tracer: Any = None
_provider: Any = None
_current: contextvars.ContextVar[str | None] = contextvars.ContextVar("traceparent", default=None)


def is_wanted() -> bool:
    """Whether the environment asks for traces: for a collector's address, or for an exporter by name."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    addresses = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return bool(exporter) or any(os.environ.get(name) for name in addresses)


def start_tracing(service: str) -> None:
    """Send spans where and as the environment says; `service` is the name where OTEL_SERVICE_NAME gives none."""
    global _tracer, _provider
    if _tracer is not None or not is_wanted():
        return
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    if exporter not in ("otlp", "console"):
        log.warning("OTEL_TRACES_EXPORTER=%r is not known here; use otlp, console or none", exporter)
        return
    # The variables for headers, time limits, sampling and batches are the packages' own to read.
    sdk = importlib.import_module("opentelemetry.sdk.trace")
    export = importlib.import_module("opentelemetry.sdk.trace.export")
    resources = importlib.import_module("opentelemetry.sdk.resources")
    if exporter == "otlp":
        http = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        processor = export.BatchSpanProcessor(http.OTLPSpanExporter())
    else:
        processor = export.SimpleSpanProcessor(export.ConsoleSpanExporter())
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"llava-serve-{service}"}
    _provider = sdk.TracerProvider(resource=resources.Resource.create(named))
    _provider.add_span_processor(processor)
    _tracer = _provider.get_tracer("llava-serve")


def stop_tracing() -> None:
    """Send what was not sent yet."""
    global _tracer, _provider
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


class Span:
    """One piece of work. Where no traces are wanted it only passes on the `traceparent` that it was given."""

    def __init__(
        self,
        name: str,
        *,
        parent: str | None = None,
        kind: Kind = "internal",
        began: float | None = None,
        attributes: Attributes | None = None,
    ) -> None:
        """`began` is on the monotonic clock."""
        self.traceparent = parent
        self._span: Any = None
        if _tracer is None:
            return
        trace = importlib.import_module("opentelemetry.trace")
        self._span = _tracer.start_span(
            name,
            context=_context(parent),
            kind=trace.SpanKind[kind.upper()],
            attributes=attributes,
            start_time=None if began is None else _wall(began),
        )
        found = self._span.get_span_context()
        self.traceparent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"

    def note(self, attributes: Attributes) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)

    def event(self, name: str) -> None:
        if self._span is not None:
            self._span.add_event(name)

    def failed(self, error: BaseException) -> None:
        """By the error's class: its sentence may name what a person sent."""
        if self._span is not None:
            trace = importlib.import_module("opentelemetry.trace")
            code = error.code if isinstance(error, LlavaError) else type(error).__name__
            self._span.set_attribute("error.type", code)
            self._span.set_status(trace.StatusCode.ERROR, code)

    def end(self, at: float | None = None) -> None:
        if self._span is not None:
            self._span.end(None if at is None else _wall(at))
            self._span = None


@contextmanager
def span(name: str, *, parent: str | None = None, kind: Kind = "internal") -> Generator[Span]:
    """A span around a block in which requests to other servers carry it. Not for async generators, whose steps run in
    whatever context takes them."""
    made = Span(name, parent=parent if parent is not None else _current.get(), kind=kind)
    token = _current.set(made.traceparent)
    try:
        yield made
    except BaseException as error:
        made.failed(error)
        raise
    finally:
        _current.reset(token)
        made.end()


def headers() -> dict[str, str]:
    """What takes the surrounding span along to another server."""
    current = _current.get()
    return {} if current is None else {HEADER: current}


def parent_of(given: Mapping[str, str]) -> str | None:
    """The `traceparent` of a request, where it is one: what strangers send goes no further otherwise."""
    value = given.get(HEADER)
    return value if value is not None and _is_traceparent(value) else None


def about(request: Request) -> Attributes:
    """What is told of a request: whose it is by its id, how much it is, and no word of it."""
    return {
        "llava.request_id": request.id,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": ascii(request.model[:100])[1:-1],
        "llava.messages": len(request.messages),
        "llava.images": len(request.images),
    }


def counted(usage: Usage) -> Attributes:
    return {"gen_ai.usage.input_tokens": usage.prompt_tokens, "gen_ai.usage.output_tokens": usage.completion_tokens}


def tell_phases(parent: str | None, phases: Phases, usage: Usage | None) -> None:
    """The spans of an engine's work on one answer, from when it says that each phase began."""
    if _tracer is None:
        return
    steps = (
        ("queue", phases.arrived, phases.admitted, {}),
        ("prefill", phases.admitted, phases.first, _prefilled(usage)),
        (
            "decode",
            phases.first,
            phases.ended,
            {"gen_ai.usage.output_tokens": usage.completion_tokens} if usage else {},
        ),
    )
    for name, began, ended, counts in steps:
        Span(name, parent=parent, began=began, attributes=counts).end(ended)


def _prefilled(usage: Usage | None) -> Attributes:
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "llava.cached_tokens": usage.cached_tokens,
        "llava.image_tokens": usage.image_tokens,
    }


def _context(parent: str | None) -> Any:
    trace = importlib.import_module("opentelemetry.trace")
    context = importlib.import_module("opentelemetry.context").Context()
    if parent is None:
        return context
    _, trace_id, span_id, flags = parent.split("-")[:4]
    found = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
    return trace.set_span_in_context(trace.NonRecordingSpan(found), context)


def _is_traceparent(value: str) -> bool:
    parts = value.split("-")
    if len(parts) != 4 or [len(part) for part in parts] != [2, 32, 16, 2] or parts[0] == "ff":
        return False
    if any(set(part) - set("0123456789abcdef") for part in parts):
        return False
    return bool(int(parts[1], 16) and int(parts[2], 16))


def _wall(moment: float) -> int:
    """Nanoseconds of the calendar's clock for a moment of the monotonic one."""
    return time.time_ns() - int((time.monotonic() - moment) * 1e9)
