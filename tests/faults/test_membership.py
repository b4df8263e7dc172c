"""Processes are killed and stopped under load: nobody who asks or reads notices more than a pause."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace

import httpx
import pytest

from llava_core.config import WorkerTimings
from llava_core.types import Request, Sampling, Usage, user
from serve.client import Client
from serve.membership import waking_clock
from serve.protocol import Registration, WorkerStatus
from serve.worker_pool import WorkerPool
from tests.faults.lateness import Lateness
from tests.faults.rig import Reading, read
from tests.topology import Server, Topology, token_header

STREAMS = 20
WORDS = " ".join(f"word{number}" for number in range(25))


def question(number: int, words: str = WORDS) -> Request:
    return Request("echo", (user(f"{number} {words}"),), Sampling(max_tokens=200, temperature=0))


@dataclass(frozen=True)
class Whole:
    """All that an answer is: text, the ids of its tokens, how it ended and what was counted."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    usage: Usage | None

    @classmethod
    def of(cls, reading: Reading) -> Whole | None:
        """None where it broke off. What a cache spared is no part of an answer."""
        if reading.error is not None:
            return None
        usage = reading.end.usage and replace(reading.end.usage, cached_tokens=0)
        ids = tuple(token for chunk in reading.chunks for token in chunk.token_ids)
        return cls(reading.text, ids, reading.end.finish_reason, usage)


async def until(condition: Callable[[], object], within_s: float) -> float:
    began = time.monotonic()
    while not await asyncio.to_thread(condition):
        assert time.monotonic() - began < within_s, "it did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def workers_of(controller: Server) -> int:
    cards = httpx.get(f"{controller.url}/v1/models", trust_env=False, timeout=30).json()["data"]
    return sum(card["workers"] for card in cards)


LONG = [question(number) for number in range(STREAMS)]
SHORT = [question(1000 + number, "hi") for number in range(400)]


class Load:
    """Twenty answers that are being read, and new questions all the time. `undisturbed` are the answers to the long
    ones and to the first short one when nothing happens to anybody."""

    def __init__(self, client: Client, undisturbed: list[Whole]) -> None:
        self._client = client
        self._enough = asyncio.Event()
        *self._long, self._short = undisturbed

    async def __aenter__(self) -> Load:
        counted: set[int] = set()
        self._streams = [
            asyncio.create_task(read(self._client, request, on_chunk=lambda _, number=number: counted.add(number)))
            for number, request in enumerate(LONG)
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
        for request in SHORT:
            if self._enough.is_set():
                break
            tasks.append(asyncio.create_task(read(self._client, request)))
            await asyncio.sleep(0.1)
        return list(await asyncio.gather(*tasks))

    def check(self) -> None:
        shorts = [replace(self._short, text=self._short.text.replace("1000", str(1000 + n))) for n in range(len(SHORT))]
        broken = [r.error or r.text for r, whole in zip(self.streams, self._long, strict=True) if Whole.of(r) != whole]
        failed = [r.error or r.text for r, whole in zip(self.asked, shorts, strict=False) if Whole.of(r) != whole]
        gaps = [reading.gap_s for reading in self.streams]
        print(
            f"\n{len(self.streams)} streams, {len(broken)} broken or changed; {len(self.asked)} new requests, "
            f"{len(failed)} failed; longest pause in a stream {max(gaps):.2f} s, median {statistics.median(gaps):.2f} s"
        )
        assert not broken
        assert not failed
        # That the new ones were answered before there was trouble, during it and after it.
        assert len(self.asked) > 10


@dataclass
class Pair:
    """A controller and two workers with the same model; whoever ends one starts another in its place."""

    topology: Topology
    controller: Server
    workers: list[Server]
    undisturbed: list[Whole] = field(default_factory=list[Whole])

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
        if not pair.undisturbed:
            readings = await asyncio.gather(*(read(client, request) for request in (*LONG, SHORT[0])))
            wholes = [Whole.of(reading) for reading in readings]
            pair.undisturbed = [whole for whole in wholes if whole is not None]
            assert len(pair.undisturbed) == len(readings)
            assert len({whole.text for whole in pair.undisturbed}) == len(readings)
        yield client


STOPPED_S = 10.0


async def test_a_hanging_worker_loses_its_work_to_others_and_comes_back(pair: Pair, client: Client):
    """Three times; the last time it hangs for ten seconds, in which twice as many answers begin and end elsewhere."""
    hung = pair.workers[0]

    def is_listed() -> bool:
        body = {"worker_name": hung.url}
        answer = httpx.post(
            f"{pair.controller.url}/worker_is_listed", json=body, headers=token_header(), trust_env=False
        )
        return bool(answer.json()["exist"])

    def waits_there() -> int:
        status = httpx.post(f"{hung.url}/worker_get_status", headers=token_header(), trust_env=False, timeout=30)
        return int(status.json()["queue_length"])

    ejections: list[float] = []
    returns: list[float] = []
    with Lateness() as late:
        for last in (False, False, True):
            async with Load(client, pair.undisturbed) as load:
                hung.signal(signal.SIGSTOP)
                ejections.append(await until(lambda: not is_listed(), 10))
                await asyncio.sleep(STOPPED_S - ejections[-1] if last else 0)
            load.check()
            stale = hung.log_text().count("outcome=stop")
            hung.signal(signal.SIGCONT)
            returns.append(await until(is_listed, 10))
            # What it had been sent meanwhile was given up; it does not run any of that now.
            await until(lambda: waits_there() == 0, 10)
            await asyncio.sleep(0.3)
            assert hung.log_text().count("outcome=stop") == stale
            assert (await read(client, SHORT[0])).error is None
    print(
        f"the stopped worker was ejected after {', '.join(f'{each:.2f}' for each in ejections)} s and back "
        f"{statistics.median(returns):.2f} s after it went on; {late}"
    )
    assert statistics.median(ejections) <= late.allows(3.0)


async def test_streams_outlive_the_controller_and_workers_are_back_at_once_when_it_returns(pair: Pair, client: Client):
    delays: list[float] = []
    with Lateness() as late:
        async with httpx.AsyncClient(trust_env=False) as http, Load(client, pair.undisturbed) as load:
            pair.controller.kill()
            for _ in range(100):
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
    # Of a hundred the third worst: the two worst are this process's own, which waits for a controller's start, too.
    p99 = sorted(delays)[-3]
    print(
        f"worker health while the controller was away: {p99 * 1000:.0f} ms (p98); both workers were back {back:.2f} s "
        f"after the controller ({up - began:.2f} s to start); {late}"
    )
    assert p99 < late.allows(0.1)
    assert statistics.median(reading.gap_s for reading in load.streams) < late.allows(0.3)
    assert back < late.allows(2)


async def test_workers_restarted_one_after_the_other_lose_nothing(pair: Pair, client: Client):
    async with Load(client, pair.undisturbed) as load:
        for worker in list(pair.workers):
            worker.signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait) == 0
            pair.replace(worker, port=worker.port)
            await until(lambda: workers_of(pair.controller) == 2, 30)
    load.check()


async def test_a_killed_worker_loses_neither_streams_nor_requests(pair: Pair, client: Client):
    unlisted: list[float] = []
    with Lateness() as late:
        for _ in range(3):
            async with Load(client, pair.undisturbed) as load:
                await asyncio.sleep(0.3)
                doomed = pair.workers[0]
                doomed.kill()
                unlisted.append(await until(lambda: workers_of(pair.controller) == 1, 10))
                pair.replace(doomed)
                await asyncio.sleep(2)
            load.check()
            await until(lambda: workers_of(pair.controller) == 2, 30)
    print(f"the killed workers were unlisted after {', '.join(f'{1000 * s:.0f}' for s in unlisted)} ms; {late}")
    assert statistics.median(unlisted) <= late.allows(2.0)
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
