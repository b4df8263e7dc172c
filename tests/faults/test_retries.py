"""Trouble is not multiplied: retries have a budget, failing workers are left alone, and one deadline holds for all."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import httpx
import pytest

from llava_core.config import BreakerLimits, ClientTimings, RetryLimits, WorkerTimings
from llava_core.errors import LlavaError, NoWorker, WorkerTimeout
from llava_core.types import Request, Sampling, user
from serve.breaker import Breakers
from serve.protocol import Registration, WorkerStatus
from serve.retry_budget import RetryBudget
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.lateness import Lateness
from tests.faults.rig import read, rig, until

HELLO = Request("m", (user("hi"),), Sampling(max_tokens=10, temperature=0))


@asynccontextmanager
async def raw(answer: bytes) -> AsyncIterator[tuple[str, list[float]]]:
    """A server that gives every request this answer, and notes when each came."""
    times: list[float] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        times.append(time.monotonic())
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", times


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 502 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 504 Oops\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
    ids=["500", "502", "503", "504", "hangs up"],
)
async def test_failing_workers_get_hardly_more_requests_than_were_asked(answer: bytes):
    from serve.client import Client
    from tests.serve.test_client import Listed

    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(raw(answer)) for _ in range(3)]
        client = await stack.enter_async_context(Client("", directory=Listed([url for url, _ in workers])))
        asked = 200
        for _ in range(asked):
            reading = await read(client, HELLO)
            assert isinstance(reading.error, LlavaError)
        attempts = sum(len(times) for _, times in workers)
    print(f"\n{asked} requests made {attempts} attempts at three failing workers")
    assert attempts <= 1.2 * asked + RetryLimits.reserve


async def test_a_circuit_opens_after_five_failures_and_one_request_finds_out_when_it_closes():
    now = 0.0
    circuits = Breakers(BreakerLimits(failures=5, pause_first_s=1, pause_most_s=8, calm_s=30), clock=lambda: now)
    assert [circuits.failed("a") for _ in range(5)] == [False] * 4 + [True]
    assert circuits.blocked() == ("a",)
    pauses: list[float] = []
    for _ in range(5):
        opened = now
        while circuits.blocked():
            now += 0.25
        pauses.append(now - opened)
        with circuits.trying("a"):
            # Whoever comes meanwhile goes elsewhere.
            assert circuits.blocked() == ("a",)
            assert circuits.failed("a")
    assert pauses == [1, 2, 4, 8, 8]
    now += 8
    with circuits.trying("a"):
        circuits.succeeded("a")
    assert circuits.blocked() == ()
    # It worked, but not for long: the next pause goes on where the last one was.
    circuits.failed("a", at_once=True)
    now += 7
    assert circuits.blocked() == ("a",)
    now += 1
    circuits.succeeded("a")
    now += 31
    circuits.succeeded("a")
    circuits.failed("a", at_once=True)
    now += 1
    assert circuits.blocked() == ()


async def test_one_success_forgives_failures_before_it():
    circuits = Breakers(BreakerLimits(failures=3))
    for _ in range(10):
        assert not circuits.failed("a")
        assert not circuits.failed("a")
        circuits.succeeded("a")
    assert circuits.blocked() == ()


def test_the_budget_is_a_share_of_what_is_asked():
    budget = RetryBudget(RetryLimits(share=0.2, reserve=3, most_saved=10))
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    for _ in range(25):
        budget.asked()
    assert [budget.spend() for _ in range(6)] == [True] * 5 + [False]
    for _ in range(1000):
        budget.asked()
    assert sum(budget.spend() for _ in range(100)) == 10


async def test_a_worker_that_was_silent_is_asked_again_as_soon_as_the_controller_has_heard_of_it():
    """Otherwise a machine that stands still for moments, as busy ones do, would lose all its workers one by one."""
    engines = [FakeEngine(), FakeEngine()]
    status = WorkerStatus(("m",), capacity=100)
    late = -WorkerTimings().late_s - 0.1
    async with rig(engines, timings=ClientTimings(connect_s=60, check_s=0.05)) as there:
        silent, other = there.proxies
        engines[0].hold.clear()
        asking = [asyncio.create_task(read(there.client, HELLO)) for _ in range(16)]
        await until(lambda: engines[0].running >= BreakerLimits().failures)
        there.pool.register(Registration(silent.url, status), late)
        readings = await asyncio.gather(*asking)
        assert [reading.text for reading in readings] == [answer_to(HELLO)] * 16
        # Now the other one has gone, and the silent one beats again.
        engines[0].hold.set()
        there.pool.lose(other.url, 0)
        there.pool.register(Registration(silent.url, status), 0)
        assert (await read(there.client, HELLO)).text == answer_to(HELLO)
    assert there.client.events["circuit_opened"] == 0


async def test_a_worker_that_crashes_again_and_again_costs_hardly_a_request():
    engines = [FakeEngine(), FakeEngine()]
    async with rig(engines) as there:
        failures = 0
        for number in range(300):
            # Up for two requests, down for eight: a crash loop.
            if number % 10 == 0:
                there.proxies[0].heal()
            elif number % 10 == 2:
                there.proxies[0].refuse()
            reading = await read(there.client, HELLO)
            failures += reading.error is not None or reading.text != answer_to(HELLO)
        tried = there.proxies[0].accepted
    print(f"\n{failures} of 300 requests failed beside a flapping worker, which saw {tried} connections")
    assert failures <= 3
    assert tried < 60


@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_ends_the_wait_in_the_queue_before_anything_is_computed(stream: bool):
    engine = FakeEngine(capacity=1)
    engine.hold.clear()
    async with rig([engine]) as there, httpx.AsyncClient(trust_env=False) as http:
        busy = asyncio.create_task(read(there.client, HELLO))
        await until(lambda: engine.running == 1)
        took: list[float] = []
        with Lateness() as late:
            for _ in range(5):
                began = time.monotonic()
                answer = await http.post(
                    f"{there.url}/v1/chat/completions",
                    json={"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream},
                    headers={"X-Request-Timeout": "0.5"},
                )
                took.append(time.monotonic() - began)
                assert (answer.status_code, answer.json()["error"]["code"]) == (504, "WorkerTimeout")
                assert engine.prefilled == 1
                await until(lambda: engine.waiting == 0)
        engine.hold.set()
        assert (await busy).text == answer_to(HELLO)
    assert engine.prefilled == 1
    print(f"\nwith 500 ms to answer, refusals came after {', '.join(f'{1000 * each:.0f}' for each in took)} ms; {late}")
    assert min(took) >= 0.5
    assert statistics.median(took) <= late.allows(0.6)


async def test_a_deadline_passes_on_to_the_worker_and_is_not_begun_anew_there():
    engines = [FakeEngine(first_s=5), FakeEngine(first_s=5)]
    async with rig(engines) as there:
        began = time.monotonic()
        reading = await read(there.client, replace(HELLO, deadline=began + 0.4))
        took = time.monotonic() - began
    assert isinstance(reading.error, WorkerTimeout)
    assert took < 2
    assert len(engines[0].asked) + len(engines[1].asked) == 1
    deadlines = [request.deadline for engine in engines for request in engine.asked]
    assert deadlines[0] is not None
    assert deadlines[0] == pytest.approx(began + 0.4, abs=0.1)


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", "1e9"])
async def test_a_deadline_that_is_none_is_a_bad_request(value: str):
    async with rig([FakeEngine()]) as there, httpx.AsyncClient(trust_env=False) as http:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        answer = await http.post(f"{there.url}/v1/chat/completions", json=body, headers={"X-Request-Timeout": value})
    assert answer.status_code == 400
    assert "X-Request-Timeout" in answer.json()["error"]["message"]


async def test_with_every_circuit_open_a_request_is_refused_at_once():
    async with rig([FakeEngine()]) as there:
        there.proxies[0].refuse()
        assert (await read(there.client, HELLO)).error is not None
        for _ in range(6):
            await read(there.client, HELLO)
        before = there.proxies[0].accepted
        reading = await read(there.client, HELLO)
        assert isinstance(reading.error, NoWorker)
        assert reading.error.retry_after is not None
        assert there.proxies[0].accepted == before
