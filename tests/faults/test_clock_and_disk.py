"""The calendar's clock is set an hour off, the disk is full: nobody is forgotten, and answers go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from llava_core.errors import BadRequest
from llava_core.types import Request, Sampling, user
from serve.client import Client
from serve.controller import create_app
from serve.credentials import make_token
from serve.protocol import WorkerStatus
from serve.registration import Registrar
from serve.worker_app import create_app as worker_app
from serve.worker_pool import WorkerPool
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.rig import read, until
from tests.serve.serving import serving
from tests.topology import Topology

FULL = Path("/dev/full")
HELLO = Request("m", (user("hi"),), Sampling(max_tokens=20, temperature=0))


@asynccontextmanager
async def registered(engine: FakeEngine) -> AsyncIterator[tuple[Client, WorkerPool]]:
    """A controller with its own clock, and a worker that keeps itself on its list."""
    pool = WorkerPool()
    async with serving(worker_app(engine)) as worker, serving(create_app(pool)) as url, Client(url) as client:
        registrar = Registrar(url, worker, lambda: WorkerStatus(("m",)))
        keeping = asyncio.create_task(registrar.keep_registered())
        await until(lambda: len(pool._entries) == 1, 60)
        yield client, pool
        keeping.cancel()
        await asyncio.wait([keeping])


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_set_an_hour_off_expires_nobody_and_breaks_no_answer(
    monkeypatch: pytest.MonkeyPatch, hours: int
):
    engine = FakeEngine()
    engine.hold.clear()
    async with registered(engine) as (client, pool):
        before = list(pool._entries)
        running = asyncio.create_task(read(client, HELLO))
        await until(lambda: engine.running == 1, 60)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
        waiting = asyncio.create_task(read(client, HELLO))
        await until(lambda: engine.running == 2, 60)
        engine.hold.set()
        for reading in (await running, await waiting):
            assert (reading.error, reading.text) == (None, answer_to(HELLO))
        # Some looks at the leases later.
        await asyncio.sleep(3 * pool.timings.sweep_s)
        assert list(pool._entries) == before


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_servers_that_cannot_write_their_logs_go_on_serving(topology: Topology):
    for number, name in enumerate(("controller", "worker-echo")):
        (topology.folder / f"{name}-{number}.log").symlink_to(FULL)
    topology.controller()
    worker = topology.worker("echo")
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    with httpx.Client(trust_env=False, timeout=60) as http:
        for _ in range(5):
            answer = http.post(f"{topology.api_url}/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert "You said: hello" in answer.json()["choices"][0]["message"]["content"]
    assert worker.stop() == 0


def test_a_token_that_cannot_be_kept_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("LLAVA_SERVE_DATA", str(tmp_path))
    monkeypatch.setattr("serve.credentials.tempfile.mkstemp", no_room)
    with pytest.raises(BadRequest, match="No space left on device"):
        make_token()
