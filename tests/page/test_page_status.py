"""The Status tab's figures: asked once for all who look, told without addresses, plain about who is late or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llava_core.config import StatusLimits
from llava_core.errors import NoWorker
from llava_core.types import ModelInfo
from serve.monitor import Figures, read_figures
from serve.page.status import StatusBoard
from serve.protocol import ListedWorker, WorkerStatus

POLL_S = 2.5


class Fleet:
    """Workers that are what the test says; a monitor of them, and a source of answers that has one."""

    def __init__(self) -> None:
        self.monitor = self
        self.there: dict[str, ListedWorker] = {}
        self.told: dict[str, str] = {}
        self.asked = 0
        self.lost = False

    def start(self, address: str, model: str = "cat") -> None:
        info = ModelInfo(model, "transformers", 4096, device="cuda:0", dtype="bfloat16")
        self.there[address] = ListedWorker(address, WorkerStatus((model,), capacity=8, models=(info,)), 0.2)
        self.tell(address, streamed=0)

    def tell(self, address: str, *, streamed: float, running: int = 0, errors: int = 0) -> None:
        self.told[address] = (
            f'llava:streamed_tokens_total{{model_name="cat"}} {streamed}\n'
            f'vllm:num_requests_running{{model_name="cat"}} {running}\n'
            f'vllm:num_requests_waiting{{model_name="cat"}} 1\n'
            'vllm:prompt_tokens_total{model_name="cat"} 200\nvllm:prefix_cache_hits_total{model_name="cat"} 150\n'
            f'llava:errors_total{{model_name="cat",error="OutOfMemory"}} {errors}\n'
            "process_resident_memory_bytes 1.0e9\n"
        )

    async def workers(self) -> Sequence[ListedWorker]:
        self.asked += 1
        if self.lost:
            raise NoWorker("the controller cannot be reached; is it running?")
        return tuple(self.there.values())

    async def figures(self, addresses: Sequence[str]) -> list[Figures | None]:
        return [read_figures(self.told[each]) if each in self.told else None for each in addresses]

    async def own_figures(self) -> Figures | None:
        return read_figures('llava:errors_total{model_name="",error="NoWorker"} 2\n')

    async def models(self) -> Sequence[Any]:
        return ()

    def stream(self, request: object) -> Any:
        raise NotImplementedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def look(board: StatusBoard, fleet: Fleet, clock: Clock) -> dict[str, Any]:
    clock.now += POLL_S
    await board.look(fleet)
    assert board._report is not None
    return board._report


async def test_tokens_a_second_are_told_of_answers_that_still_run() -> None:
    fleet, clock = Fleet(), Clock()
    board = StatusBoard(fleet, clock=clock)
    fleet.start("http://10.0.0.7:21002")
    await look(board, fleet, clock)
    fleet.tell("http://10.0.0.7:21002", streamed=100, running=3, errors=1)
    report = await look(board, fleet, clock)
    (row,) = report["workers"]
    assert row["tokens_s"] == 40.0
    assert (row["running"], row["waiting"], row["capacity"]) == (3, 1, 8)
    assert row["cache"] == 0.75
    assert row["errors"] == {"OutOfMemory": 1}
    assert report["totals"]["errors"] == {"OutOfMemory": 1, "NoWorker": 2}
    assert report["totals"]["tokens"] == [0.0, 40.0]


async def test_a_worker_that_was_started_anew_counts_from_nothing() -> None:
    fleet, clock = Fleet(), Clock()
    board = StatusBoard(fleet, clock=clock)
    fleet.start("http://a:1")
    fleet.tell("http://a:1", streamed=500)
    await look(board, fleet, clock)
    fleet.tell("http://a:1", streamed=10)
    assert (await look(board, fleet, clock))["workers"][0]["tokens_s"] == 0.0


async def test_no_address_reaches_a_visitor() -> None:
    fleet, clock = Fleet(), Clock()
    board = StatusBoard(fleet, clock=clock)
    fleet.start("http://10.0.0.7:21002")
    assert "10.0.0.7" not in str(await look(board, fleet, clock))


async def test_late_and_gone_workers_are_named_and_forgotten_after_a_while() -> None:
    fleet, clock = Fleet(), Clock()
    board = StatusBoard(fleet, StatusLimits(gone_s=60), clock)
    fleet.start("http://a:1")
    fleet.start("http://b:1", "dog")
    await look(board, fleet, clock)
    one = fleet.there["http://b:1"]
    fleet.there["http://b:1"] = ListedWorker(one.worker_name, one.status, 3.0, late=True)
    del fleet.there["http://a:1"]
    report = await look(board, fleet, clock)
    assert {row["model"]: row["state"] for row in report["workers"]} == {"cat": "gone", "dog": "late"}
    assert report["totals"]["there"] == 1
    clock.now += 61
    report = await look(board, fleet, clock)
    assert [row["model"] for row in report["workers"]] == ["dog"]


async def test_a_worker_that_came_back_is_ready_again() -> None:
    fleet, clock = Fleet(), Clock()
    board = StatusBoard(fleet, clock=clock)
    fleet.start("http://a:1")
    await look(board, fleet, clock)
    listed = fleet.there.pop("http://a:1")
    assert (await look(board, fleet, clock))["workers"][0]["state"] == "gone"
    fleet.there["http://a:1"] = listed
    assert (await look(board, fleet, clock))["workers"][0]["state"] == "ready"


async def test_a_lost_controller_leaves_the_last_figures_and_says_so() -> None:
    fleet, clock = Fleet(), Clock()
    board = StatusBoard(fleet, clock=clock)
    fleet.start("http://a:1")
    await look(board, fleet, clock)
    fleet.lost = True
    report = await look(board, fleet, clock)
    assert "cannot be reached" in report["trouble"]
    assert len(report["workers"]) == 1


async def test_however_many_look_the_workers_are_asked_once_and_in_the_end_no_more() -> None:
    fleet, clock = Fleet(), Clock()
    pauses: asyncio.Queue[None] = asyncio.Queue()
    paused = asyncio.Event()

    async def sleep(seconds: float) -> None:
        clock.now += seconds
        paused.set()
        await pauses.get()

    board = StatusBoard(fleet, StatusLimits(idle_s=10), clock, sleep)
    fleet.start("http://a:1")
    reports = await asyncio.gather(*(board.report() for _ in range(50)))
    await paused.wait()
    assert fleet.asked == 1
    assert all(report == reports[0] for report in reports)
    for _ in range(20):
        pauses.put_nowait(None)
        await asyncio.sleep(0)
    assert board._task is not None
    await asyncio.wait({board._task}, timeout=30)
    assert board._task.done()
    assert fleet.asked < 8


async def test_a_source_without_workers_says_so() -> None:
    class Plain:
        async def models(self) -> Sequence[Any]:
            return ()

        def stream(self, request: object) -> Any:
            raise NotImplementedError

    assert (await StatusBoard(Plain()).report())["trouble"]
