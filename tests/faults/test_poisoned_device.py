"""A device that fails for good takes its process with it, and no answer: others go on with those."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from llava_core.errors import DevicePoisoned, OutOfMemory, from_body
from llava_core.types import Request, Sampling, user
from serve import model_worker
from serve.client import Client
from serve.http_errors import status_of
from serve.launcher.supervisor import Backoff, ChildSpec, Event, Supervisor
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.poisoned_worker import POISON, Poisoned
from tests.faults.rig import read, rig, until
from tests.topology import ROOT, Topology, free_port

HELLO = Request("m", (user("hi"),), Sampling(max_tokens=30, temperature=0))


async def test_a_poisoned_worker_ends_with_its_own_code_and_its_answers_go_on(monkeypatch: pytest.MonkeyPatch):
    bad, port = Poisoned(delay_s=0.01), free_port()
    codes: list[int] = []
    monkeypatch.setattr(model_worker, "_leave_now", lambda code: codes.append(code) or code)
    async with rig([FakeEngine(delay_s=0.01)]) as there:
        worker = asyncio.create_task(
            model_worker.serve_worker(
                lambda: bad, host="127.0.0.1", port=port, worker_address=None, controller=there.url
            )
        )
        await until(lambda: len(there.pool.addresses(0)) == 2)
        reading = asyncio.gather(*(read(there.client, HELLO) for _ in range(8)))
        await until(lambda: bad.running > 1 and bad.computed > 10)
        bad.fails = True
        readings = await reading
        assert await asyncio.wait_for(worker, 20) == model_worker.POISONED
        assert codes == [70]
        assert len(there.pool.addresses(0)) == 1
    assert [(reading.error, reading.text) for reading in readings] == [(None, answer_to(HELLO))] * 8


async def test_a_supervisor_puts_another_process_in_the_place_of_a_poisoned_one(topology: Topology, tmp_path: Path):
    controller = await asyncio.to_thread(topology.controller)
    events: list[Event] = []

    def spec(name: str, *more: str) -> ChildSpec:
        port = free_port()
        argv = (sys.executable, "-m", "tests.faults.poisoned_worker", str(port), controller.url, *more)
        ready = f"http://127.0.0.1:{port}/health/ready"
        return ChildSpec(name, argv, ready, tmp_path / f"{name}.log", cwd=ROOT)

    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:

        async def probe(url: str) -> bool:
            with suppress(httpx.HTTPError):
                return (await http.get(url)).status_code == 200
            return False

        supervisor = Supervisor(
            [spec("bad", "fails"), spec("good")], probe=probe, tell=events.append, backoff=Backoff(first_s=0.05)
        )
        running = asyncio.create_task(supervisor.run())

        def seen(kind: str, name: str) -> int:
            return sum(event.kind == kind and event.child.spec.name == name for event in events)

        async def both_are_listed() -> None:
            async with asyncio.timeout(60):
                while True:
                    cards = (await http.get(f"{controller.url}/v1/models")).json()["data"]
                    if [card["workers"] for card in cards] == [2]:
                        return
                    await asyncio.sleep(0.02)

        try:
            await both_are_listed()
            await until(lambda: seen("ready", "bad") == 1, 60)
            first = supervisor.children[0].pid
            # Some of each for either worker, so that the bad one gets its poison and has others' answers to lose.
            asked = [replace(HELLO, messages=(user(f"question {number}"),)) for number in range(8)]
            asked += [replace(HELLO, messages=(user(f"{POISON} {number}"),)) for number in range(4)]
            async with Client(controller.url) as client:
                readings = await asyncio.gather(*(read(client, request) for request in asked))
                await until(lambda: seen("died", "bad") == 1, 60)
                await until(lambda: seen("ready", "bad") == 2, 60)
                await both_are_listed()
                after = await read(client, HELLO)
            second = supervisor.children[0].pid
        finally:
            supervisor.stop()
            await asyncio.wait_for(running, 60)
    assert [event.code for event in events if event.kind == "died"] == [model_worker.POISONED]
    assert first != second
    assert [(r.error, r.text) for r in readings] == [(None, answer_to(request)) for request in asked]
    assert after.text == answer_to(HELLO)


def test_errors_of_the_device_are_told_apart():
    torch = pytest.importorskip("torch")
    from llava_core.engines.transformers.loop import _as_llava_error

    class Sequence:
        request, prompt_length = HELLO, 3

    def said(message: str) -> str:
        return type(_as_llava_error(torch.AcceleratorError(message), Sequence())).__name__  # pyright: ignore

    assert said("CUDA error: device-side assert triggered") == "DevicePoisoned"
    assert said("CUDA error: an illegal memory access was encountered") == "DevicePoisoned"
    assert said("CUDA error: out of memory") == "OutOfMemory"
    assert said("shapes do not match") == "EngineFailure"


def test_the_failure_keeps_its_class_on_the_wire_and_may_be_tried_elsewhere():
    error = from_body(DevicePoisoned("gone").to_body())
    assert isinstance(error, DevicePoisoned)
    assert error.retryable
    assert status_of(error) == 503
    assert OutOfMemory.retryable
