"""Processes are killed and stopped under load: nobody who asks or reads notices more than a pause."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from llava_core.config import WorkerTimings
from llava_core.types import Request, Sampling, user
from serve.client import Client
from serve.membership import waking_clock
from serve.protocol import Registration, WorkerStatus
from serve.worker_pool import WorkerPool
from tests.faults.rig import Reading, read
from tests.topology import Server, Topology, token_header

STREAMS = 20
WORDS = " ".join(f"word{number}" for number in range(25))


def question(number: int, words: str = WORDS) -> Request:
    return Request("echo", (user(f"{number} {words}"),), Sampling(max_tokens=200, temperature=0))


def is_whole(reading: Reading, request: Request) -> bool:
    """The echo engine's answer ends with what it was asked."""
    ends = reading.text.endswith(f"You said: {request.messages[0].text}")
    starts = reading.text.startswith("I received 1 turn and 0 images")
    return reading.error is None and starts and ends and reading.text.count("You said") == 1


async def until(condition: Callable[[], object], within_s: float) -> float:
    began = time.monotonic()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() - began < within_s, "it did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def workers_of(controller: Server) -> int:
    cards = httpx.get(f"{controller.url}/v1/models", trust_env=False, timeout=30).json()["data"]
    return sum(card["workers"] for card in cards)


class Load:
    """Twenty answers that are being read, and new questions all the time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._enough = asyncio.Event()
        self._begun = 0
        self.requests = [question(number) for number in range(STREAMS)]
        self.short = [question(1000 + number, "hi") for number in range(400)]

    async def __aenter__(self) -> Load:
        counted: set[int] = set()
        self._streams = [
            asyncio.create_task(read(self._client, request, on_chunk=lambda _, number=number: counted.add(number)))
            for number, request in enumerate(self.requests)
        ]
        self._asking = asyncio.create_task(self._ask())
        await until(lambda: len(counted) == STREAMS, 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._enough.set()
        self.streams = await asyncio.gather(*self._streams)
        self.asked = await self._asking

    async def _ask(self) -> list[Reading]:
        """Ten a second."""
        tasks: list[asyncio.Task[Reading]] = []
        for request in self.short:
            if self._enough.is_set():
                break
            tasks.append(asyncio.create_task(read(self._client, request)))
            await asyncio.sleep(0.1)
        return list(await asyncio.gather(*tasks))

    def check(self) -> None:
        broken = [r.error for r, q in zip(self.streams, self.requests, strict=True) if not is_whole(r, q)]
        failed = [r.error for r, q in zip(self.asked, self.short, strict=False) if not is_whole(r, q)]
        gaps = [reading.gap_s for reading in self.streams]
        print(
            f"\n{len(self.streams)} streams, {len(broken)} broken or changed; {len(self.asked)} new requests, "
            f"{len(failed)} failed; longest pause in a stream {max(gaps):.2f} s, median {statistics.median(gaps):.2f} s"
        )
        assert not broken
        assert not failed


@dataclass
class Pair:
    """A controller and two workers with the same model; whoever ends one starts another in its place."""

    topology: Topology
    controller: Server
    workers: list[Server]

    def replace(self, worker: Server, *, port: int | None = None) -> None:
        self.workers[self.workers.index(worker)] = start_worker(self.topology, port)


def start_worker(topology: Topology, port: int | None = None) -> Server:
    return topology.worker("echo", delay_s=0.03, port=port, extra=("--max-running", "64"), wait=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Topology(tmp_path_factory.mktemp("pair")) as topology:
        controller = topology.controller()
        yield Pair(topology, controller, [start_worker(topology) for _ in range(2)])


@pytest.fixture
async def client(pair: Pair) -> AsyncIterator[Client]:
    await until(lambda: workers_of(pair.controller) == 2, 30)
    async with Client(pair.controller.url) as client:
        yield client


async def test_a_hanging_worker_loses_its_work_to_others_and_comes_back(pair: Pair, client: Client):
    hung = pair.workers[0]

    def is_listed() -> bool:
        body = {"worker_name": hung.url}
        answer = httpx.post(
            f"{pair.controller.url}/worker_is_listed", json=body, headers=token_header(), trust_env=False
        )
        return bool(answer.json()["exist"])

    async with Load(client) as load:
        hung.signal(signal.SIGSTOP)
        ejected = await until(lambda: not is_listed(), 10)
    load.check()
    stale = hung.log_text().count("outcome=stop")
    hung.signal(signal.SIGCONT)
    back = await until(is_listed, 10)
    # What it had been sent meanwhile was given up; it does not run any of that now.
    await asyncio.sleep(0.3)
    assert hung.log_text().count("outcome=stop") == stale
    print(f"the stopped worker was ejected after {ejected:.2f} s and back {back:.2f} s after it went on")
    assert ejected < 3.5  # half a second for a busy machine


async def test_streams_outlive_the_controller_and_workers_are_back_at_once_when_it_returns(pair: Pair, client: Client):
    delays: list[float] = []
    async with httpx.AsyncClient(trust_env=False) as http, Load(client) as load:
        pair.controller.kill()
        for _ in range(20):
            began = time.monotonic()
            assert (await http.get(f"{pair.workers[0].url}/health/live")).status_code == 200
            delays.append(time.monotonic() - began)
        began = time.monotonic()
        pair.controller = pair.topology.start_controller(port=pair.controller.port)
        await until(lambda: _answers(pair.controller), 30)
        up = time.monotonic()
        await until(lambda: workers_of(pair.controller) == 2, 10)
        back = time.monotonic() - up
    load.check()
    print(
        f"worker health while the controller was away: {max(delays) * 1000:.0f} ms at most; "
        f"both workers were back {back:.2f} s after the controller ({up - began:.2f} s to start)"
    )
    assert back < 2


async def test_workers_restarted_one_after_the_other_lose_nothing(pair: Pair, client: Client):
    async with Load(client) as load:
        for worker in list(pair.workers):
            worker.signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait) == 0
            pair.replace(worker, port=worker.port)
            await until(lambda: workers_of(pair.controller) == 2, 30)
    load.check()


async def test_a_killed_worker_loses_neither_streams_nor_requests(pair: Pair, client: Client):
    async with Load(client) as load:
        await asyncio.sleep(0.3)
        doomed = pair.workers[0]
        doomed.kill()
        unlisted = await until(lambda: workers_of(pair.controller) == 1, 10)
        pair.replace(doomed)
        await asyncio.sleep(0.5)
    load.check()
    print(f"the killed worker was unlisted after {unlisted * 1000:.0f} ms")
    assert unlisted < 2
    assert "its connection ended" in pair.controller.log_text()


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health/live", trust_env=False, timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_controller_that_was_stopped_forgets_nobody_when_it_goes_on():
    now = 100.0
    clock = waking_clock(lambda: now)
    pool = WorkerPool()
    pool.register(Registration("http://127.0.0.1:1", WorkerStatus(("m",))), clock())
    # The wall may say what it likes: an hour passed in which nothing of ours ran.
    now += 3600
    assert pool.expire(clock()) == ()
    assert clock() - 100 <= 1
    for _ in range(200):
        now += 0.2
        clock()
    assert pool.expire(clock()) == ("http://127.0.0.1:1",)


def test_a_suspect_gets_nothing_while_others_can_take_it_and_all_when_nobody_else_is_left():
    pool, late = WorkerPool(), WorkerTimings().late_s + 0.1
    one, other = "http://127.0.0.1:1", "http://127.0.0.1:2"
    for address in (one, other):
        pool.register(Registration(address, WorkerStatus(("m",))), 0)
    assert not pool.suspect(one, 0)
    pool.heartbeat(other, 0, late)
    assert pool.late(late) == (one,)
    assert pool.is_worth_waiting_for(one, late, begun=True)
    assert pool.suspect(one, late)
    assert not pool.suspect(one, late)
    assert not pool.lists(one, late)
    assert not pool.is_worth_waiting_for(one, late, begun=True)
    assert {pool.pick("m", late) for _ in range(4)} == {other}
    pool.deregister(other, late, 30)
    assert pool.is_worth_waiting_for(one, late, begun=True)
    assert pool.pick("m", late) == one
    pool.heard(one, late)
    assert pool.lists(one, late)
