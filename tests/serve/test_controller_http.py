"""The controller over HTTP: the original's routes, hostile registrations, workers that come, go and come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from llava_core.config import WorkerTimings
from llava_core.types import EngineStatus
from serve.controller import create_app
from serve.protocol import WorkerStatus
from serve.registration import Registrar
from serve.worker_app import EngineSlot
from serve.worker_app import create_app as worker_app
from serve.worker_pool import WorkerPool
from tests.serve.serving import ScriptedEngine, serving
from tests.topology import free_port

A = "http://127.0.0.1:1001"
FAST = WorkerTimings(
    heartbeat_s=0.05, register_backoff_first_s=0.01, register_backoff_most_s=0.05, control_timeout_s=0.5
)


def registration(address: str = A, **status: Any) -> dict[str, Any]:
    """As the original's workers write it."""
    return {
        "worker_name": address,
        "check_heart_beat": True,
        "worker_status": {"model_names": ["m"], "speed": 1, "queue_length": 0, **status},
    }


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def controller(pool: WorkerPool, clock: Clock | None = None) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(pool, clock=clock or Clock())
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http:
        yield http


async def post(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_originals_routes_do_what_they_did():
    async with controller(WorkerPool()) as http:
        await post(http, "/register_worker", **registration())
        assert await post(http, "/list_models") == {"models": ["m"]}
        assert await post(http, "/get_worker_address", model="m") == {"address": A}
        assert await post(http, "/receive_heart_beat", worker_name=A, queue_length=3) == {"exist": True}
        assert (await post(http, "/worker_get_status"))["queue_length"] == 3
        assert await post(http, "/receive_heart_beat", worker_name="http://x", queue_length=0) == {"exist": False}
        assert await post(http, "/deregister_worker", worker_name=A) == {"exist": False}
        assert await post(http, "/list_models") == {"models": []}
        assert (await http.post("/worker_get_status")).status_code == 503


HOSTILE: list[dict[str, Any] | list[Any] | str] = [
    registration(speed=0),
    registration(speed=-1),
    registration(speed=float("nan")),
    registration(speed=float("inf")),
    registration(speed="fast"),
    registration(queue_length=-999),
    registration(queue_length=10**40),
    registration(queue_length=None),
    registration(capacity=0),
    registration(model_names=["\ud800"]),
    registration(model_names=[]),
    registration(model_names="m"),
    registration(model_names=[7]),
    registration(model_names=["x"] * 1000),
    registration(models=[{"name": "m"}]),
    registration(models=[{"name": "other", "engine": "e", "context_length": 1}]),
    registration("file:///etc/passwd"),
    registration("http://169.254.169.254"),
    registration("http://127.0.0.1:1001/../x"),
    registration("127.0.0.1:1001"),
    {"worker_name": A},
    {"worker_status": registration()["worker_status"]},
    [],
    "x",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda body: json.dumps(body)[:70])
async def test_a_hostile_registration_changes_nothing(hostile: Any):
    pool = WorkerPool()
    async with controller(pool) as http:
        await post(http, "/register_worker", **registration())
        before = pool.cards(0), pool.total(0), pool.addresses(0)
        raw = json.dumps(hostile)
        answer = await http.post("/register_worker", content=raw, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert (pool.cards(0), pool.total(0), pool.addresses(0)) == before
        for _ in range(5):
            assert await post(http, "/get_worker_address", model="m") == {"address": A}


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 50_000, b'{"a": "\\ud800"}', b"\xff", b"x" * 400_000])
@pytest.mark.parametrize("path", ["/register_worker", "/receive_heart_beat", "/get_worker_address"])
async def test_garbage_is_refused_with_a_sentence(path: str, raw: bytes):
    async with controller(WorkerPool()) as http:
        answer = await http.post(path, content=raw, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"]["message"]
        assert not any(word in answer.text for word in ("Traceback", ".py", "pydantic"))
        assert (await http.get("/health/ready")).status_code == 200


async def test_a_form_from_a_strangers_page_registers_nobody():
    pool = WorkerPool()
    async with controller(pool) as http:
        raw = json.dumps(registration())
        answer = await http.post("/register_worker", content=raw, headers={"Content-Type": "text/plain"})
        assert (answer.status_code, pool.addresses(0)) == (422, ())
        assert "Content-Type: application/json" in answer.json()["error"]["message"]
        # No redirect either, which would go wherever the caller's Host header says.
        assert (await http.post("/register_worker/", json=registration())).status_code == 404


async def test_a_heartbeat_with_a_hostile_queue_changes_nothing():
    pool = WorkerPool()
    async with controller(pool) as http:
        await post(http, "/register_worker", **registration(queue_length=2))
        for queue in (-999, 10**12, "many", None, 1.5):
            answer = await http.post("/receive_heart_beat", json={"worker_name": A, "queue_length": queue})
            assert answer.status_code in (400, 422)
    total = pool.total(0)
    assert total is not None
    assert total.queue_length == 2


async def test_refreshing_drops_workers_that_do_not_answer_and_updates_those_that_do():
    pool = WorkerPool()
    engine = ScriptedEngine(busy=EngineStatus(running=2, waiting=1, capacity=4))
    async with controller(pool) as http, serving(worker_app(engine)) as alive:
        await post(http, "/register_worker", **registration(alive))
        await post(http, "/register_worker", **registration(f"http://127.0.0.1:{free_port()}"))
        assert await post(http, "/refresh_all_workers") == {"models": ["m"]}
        assert pool.addresses(0) == (alive,)
        total = pool.total(0)
    assert total is not None
    assert (total.queue_length, total.capacity) == (3, 4)


async def test_readiness_tells_what_is_served():
    async with controller(WorkerPool()) as http:
        assert (await http.get("/health/live")).json() == {"status": "live"}
        assert (await http.get("/health/ready")).json()["models"] == {}
        await post(http, "/register_worker", **registration())
        assert (await http.get("/health/ready")).json()["models"] == {"m": 1}


async def until(condition: Any, within_s: float = 10) -> None:
    for _ in range(round(within_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def registrar(url: str, busy: EngineStatus | None = None) -> Registrar:
    slot = EngineSlot(ScriptedEngine(busy=busy or EngineStatus()))
    return Registrar(url, A, slot.status, FAST)


async def test_a_worker_registers_when_the_controller_appears_and_again_when_it_is_restarted():
    port = free_port()
    speaker = registrar(f"http://127.0.0.1:{port}", EngineStatus(running=1))
    keeping = asyncio.create_task(speaker.keep_registered())
    for _ in range(2):
        pool = WorkerPool()
        async with serving(create_app(pool), port=port):
            await until(lambda pool=pool: pool.addresses(asyncio.get_running_loop().time()) == (A,))
    keeping.cancel()
    await speaker.say_goodbye()


async def test_a_worker_the_controller_forgot_comes_back_by_itself():
    pool = WorkerPool()
    clock = Clock()
    async with serving(create_app(pool, clock=clock)) as url:
        speaker = registrar(url)
        keeping = asyncio.create_task(speaker.keep_registered())
        await until(lambda: pool.addresses(0))
        pool.lose(A, 0)
        await until(lambda: pool.addresses(0))
        keeping.cancel()
        await speaker.say_goodbye()
        assert pool.addresses(0) == ()


async def test_trouble_with_the_controller_is_told_once_and_stops_nothing(caplog: pytest.LogCaptureFixture):
    refusals = 0

    def refuse(request: httpx.Request) -> httpx.Response:
        nonlocal refusals
        refusals += 1
        return httpx.Response(400, json={"error": {"code": "BadRequest", "message": "not you"}})

    speaker = Registrar("http://c", A, lambda: WorkerStatus(("m",)), FAST, httpx.MockTransport(refuse))
    keeping = asyncio.create_task(speaker.keep_registered())
    await until(lambda: refusals > 5)
    keeping.cancel()
    assert caplog.text.count("not you") == 1
    await speaker.say_goodbye()
