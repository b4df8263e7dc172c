"""A device that fails for good takes its process with it, and no answer: others go on with those."""

from __future__ import annotations

import asyncio

import pytest

from llava_core.errors import DevicePoisoned, OutOfMemory, from_body
from llava_core.types import Request, Sampling, user
from serve import model_worker
from serve.http_errors import status_of
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.rig import read, rig, until
from tests.topology import free_port

HELLO = Request("m", (user("hi"),), Sampling(max_tokens=30, temperature=0))


class Poisoned(FakeEngine):
    """From `fails` on, every answer ends with the device's failure."""

    fails = False

    async def _answer(self, request: Request):
        async for chunk in super()._answer(request):
            if self.fails:
                raise DevicePoisoned("the device failed")
            yield chunk


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
