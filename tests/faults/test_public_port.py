"""The port for everybody has the API and nothing else; the control plane is on one of its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from llava_core.types import Request, Sampling, user
from serve.client import Client
from serve.controller import create_app
from serve.gate import Gate
from serve.key_ring import KeyRing
from serve.protocol import Registration, WorkerStatus
from serve.registration import Registrar
from serve.worker_app import create_app as worker_app
from serve.worker_pool import WorkerPool
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.rig import read, until
from tests.serve.serving import serving
from tests.topology import Topology, token_header

TOKEN = "a-token-of-this-test-0123456789"
HELLO = Request("m", (user("hi"),), Sampling(max_tokens=5, temperature=0))
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}


@asynccontextmanager
async def both_ports(ring: KeyRing | None = None) -> AsyncIterator[tuple[str, str, WorkerPool]]:
    """The addresses of everybody's port and of the control plane's, as on a network."""
    pool = WorkerPool()
    app = create_app(pool, clock=lambda: 0.0, token=TOKEN, keys=ring, gate=Gate(TOKEN, ring, api="control"))
    async with (
        serving(worker_app(FakeEngine(), token=TOKEN)) as worker,
        serving(app) as control,
        serving(app.state.public) as public,
    ):
        pool.register(Registration(worker, WorkerStatus(("m",))), 0)
        yield public, control, pool


async def test_no_route_of_the_control_plane_is_there_for_everybody_even_with_the_token():
    app = create_app(WorkerPool(), token=TOKEN)
    control = {path for path in app.openapi()["paths"] if not path.startswith(("/v1/", "/health/"))}
    assert {"/register_worker", "/get_worker_address", "/metrics"} <= control
    async with both_ports() as (public, _, _), httpx.AsyncClient(base_url=public, trust_env=False) as http:
        for path in (*control, "/openapi.json", "/docs"):
            for method in ("GET", "POST"):
                assert (await http.request(method, path, json={})).status_code in (401, 404), path
                assert (await http.request(method, path, json={}, headers=WITH_TOKEN)).status_code == 404, path
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/health/ready")).json()["models"] == {"m": 1}
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["m"]


async def test_the_control_plane_asks_for_its_token_whatever_is_wanted():
    async with both_ports() as (_, control, _), httpx.AsyncClient(base_url=control, trust_env=False) as http:
        for path in ("/v1/models", "/metrics", "/list_models"):
            method = "POST" if path == "/list_models" else "GET"
            assert (await http.request(method, path)).status_code == 401
            assert (await http.request(method, path, headers=WITH_TOKEN)).status_code == 200
        assert (await http.get("/health/live")).status_code == 200


async def test_our_client_needs_one_address_be_it_everybodys_or_the_control_planes(tmp_path: Path):
    ring = KeyRing(tmp_path / "keys.json")
    key = ring.add("ann")
    async with both_ports(ring) as (public, control, _):
        for url, credential in ((public, key), (public, TOKEN), (control, TOKEN)):
            async with Client(url, credential=credential) as client:
                assert [card.info.name for card in await client.models()] == ["m"]
                assert (await read(client, HELLO)).text == answer_to(HELLO)


async def test_a_worker_that_is_given_everybodys_address_says_which_one_it_needs(caplog):
    async with both_ports() as (public, _, pool):
        before = pool.addresses(0)
        registrar = Registrar(public, "http://127.0.0.1:1", lambda: WorkerStatus(("m",)), token=TOKEN)
        keeping = asyncio.create_task(registrar.keep_registered())
        await until(lambda: "has no control plane" in caplog.text, 60)
        keeping.cancel()
        assert "control port" in caplog.text
        assert pool.addresses(0) == before


def test_streams_on_both_ports_finish_when_the_controller_is_told_to_stop(topology: Topology):
    controller = topology.controller()
    topology.worker("echo", delay_s=0.1)
    body = {"model": "echo", "messages": [{"role": "user", "content": "one two three four five"}], "stream": True}
    with (
        httpx.Client(trust_env=False, timeout=60, headers=token_header()) as http,
        http.stream("POST", f"{topology.api_url}/v1/chat/completions", json=body) as public,
        http.stream("POST", f"{controller.url}/v1/chat/completions", json=body) as private,
    ):
        assert (public.status_code, private.status_code) == (200, 200)
        controller.signal(signal.SIGTERM)
        assert "[DONE]" in "".join(public.iter_text())
        assert "[DONE]" in "".join(private.iter_text())
    assert controller.wait() == 0
