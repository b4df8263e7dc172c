"""One trace leads from who asks through every server to the engine's phases; without the variables there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serve.tracing import is_wanted, parent_of
from tests.topology import ROOT, Topology, token_header

SECRET = "a-question-that-is-nobodys-business"


@dataclass
class Collector:
    """What an OTLP collector received, by the service that sent it."""

    url: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)
    raw: bytes = b""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            found.raw += body
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = {each.key: each.value.string_value for each in resource.resource.attributes}
                found.spans += [(named["service.name"], s) for scope in resource.scope_spans for s in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    yield found
    server.shutdown()
    thread.join(20)
    server.server_close()


def attributes(span: Span) -> dict[str, str | int]:
    return {
        each.key: each.value.string_value if each.value.HasField("string_value") else each.value.int_value
        for each in span.attributes
    }


def test_one_trace_leads_from_who_asks_to_the_engines_phases(topology: Topology, collector: Collector):
    controller = topology.controller()
    worker = topology.worker("echo", delay_s=0.001)
    asked = [sys.executable, "-m", "serve.cli", "--controller", controller.url, "--prompt", SECRET, "--model", "echo"]
    ran = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    mine = f"00-{'ab' * 16}-{'cd' * 8}-01"
    body = {"model": "echo", "messages": [{"role": "user", "content": SECRET}]}
    headers = {"traceparent": mine, "X-Request-Id": "asked-by-me", **token_header()}
    answer = httpx.post(
        f"{controller.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=60
    )
    assert answer.status_code == 200
    for server in (worker, controller):
        server.stop()

    traces = {span.trace_id.hex() for _, span in collector.spans}
    assert len(traces) == 2
    from_cli = (traces - {"ab" * 16}).pop()
    named = {(service, span.name) for service, span in collector.spans if span.trace_id.hex() == from_cli}
    assert named == {
        ("llava-serve-cli", "ask"),
        ("llava-serve-cli", "find a worker"),
        ("llava-serve-controller", "pick a worker"),
        ("llava-serve-worker", "chat"),
        *(("llava-serve-worker", phase) for phase in ("queue", "prefill", "decode")),
    }
    through_api = {(service, span.name): span for service, span in collector.spans if span.trace_id.hex() == "ab" * 16}
    at_controller, at_worker = (through_api[f"llava-serve-{where}", "chat"] for where in ("controller", "worker"))
    assert at_controller.parent_span_id.hex() == "cd" * 8
    asking = through_api["llava-serve-controller", "ask"]
    assert (asking.parent_span_id, at_worker.parent_span_id) == (at_controller.span_id, asking.span_id)
    assert attributes(at_controller)["llava.request_id"] == attributes(at_worker)["llava.request_id"] == "asked-by-me"
    told = attributes(at_worker)
    decode = through_api["llava-serve-worker", "decode"]
    assert decode.parent_span_id == at_worker.span_id
    assert attributes(decode)["gen_ai.usage.output_tokens"] == told["gen_ai.usage.output_tokens"]
    assert told["gen_ai.usage.output_tokens"] != 0
    prefill = attributes(through_api["llava-serve-worker", "prefill"])
    assert prefill["gen_ai.usage.input_tokens"] == told["gen_ai.usage.input_tokens"]
    phases = [through_api["llava-serve-worker", phase] for phase in ("queue", "prefill", "decode")]
    for earlier, later in pairwise(phases):
        assert abs(earlier.end_time_unix_nano - later.start_time_unix_nano) < 50_000_000
    assert SECRET.encode() not in collector.raw


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, False),
    ],
    ids=str,
)
def test_traces_are_made_where_the_usual_variables_ask_for_them(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], wanted: bool
):
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert is_wanted() == wanted


def test_where_nobody_asks_for_traces_nothing_of_them_is_imported(tmp_path: Path):
    code = (
        "import sys; from serve import tracing, controller, model_worker, cli; tracing.start_tracing('x')\n"
        "with tracing.span('a') as s: s.note({'b': 1}); s.event('c'); s.end()\n"
        "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, timeout=120).returncode == 0


def test_what_is_no_traceparent_goes_no_further():
    good = f"00-{'1' * 32}-{'2' * 16}-01"
    assert parent_of({"traceparent": good}) == good
    for odd in (
        "",
        "x",
        good.upper().replace("1", "A"),
        good + "-1",
        good.replace("1", "0"),
        "ff" + good[2:],
        "é" * 55,
    ):
        assert parent_of({"traceparent": odd}) is None
