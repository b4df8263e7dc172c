"""A worker dies in mid-answer: another goes on with the same answer, token for token, or the reader is told."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from llava_core.config import ClientTimings
from llava_core.errors import ContextOverflow, EngineFailure, LlavaError, OutOfMemory, WorkerLost
from llava_core.types import Grammar, Request, Sampling, assistant, user
from tests.faults.fake_engine import FakeEngine, answer_to
from tests.faults.rig import read, rig

HELLO = Request("m", (user("hi"),), Sampling(max_tokens=40, temperature=0))


@pytest.mark.parametrize("with_ids", [True, False])
async def test_wherever_a_stream_breaks_the_answer_is_the_undisturbed_one(with_ids: bool):
    engines = [FakeEngine(with_ids=with_ids) for _ in range(3)]
    async with rig(engines) as there:
        whole = await read(there.client, HELLO)
        assert whole.text == answer_to(HELLO)
        size = max(proxy.bytes_to_client for proxy in there.proxies)
        broken = 0
        for cut in range(150, size + 50, max(1, size // 60)):
            # Two of three break after so many bytes.
            for proxy in there.proxies[:2]:
                proxy.cut_after(cut)
            begun = [engine.prefilled for engine in engines]
            reading = await read(there.client, HELLO)
            assert reading.error is None, (cut, reading.error)
            assert reading.text == whole.text, cut
            assert reading.end.usage == whole.end.usage, cut
            assert reading.end.finish_reason == whole.end.finish_reason
            broken += sum(engine.prefilled for engine in engines) - sum(begun) > 1
        assert broken > 20
        print(f"\n{broken} streams of {size} bytes broken at different places, all continued")


@pytest.mark.parametrize("stream", [True, False])
async def test_the_api_goes_on_with_the_same_answer(stream: bool):
    engines = [FakeEngine(delay_s=0.002) for _ in range(2)]
    async with rig(engines) as there, httpx.AsyncClient(trust_env=False) as http:
        for proxy in there.proxies[:1]:
            proxy.cut_after(3000)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40, "stream": stream}
        # Two, so that one of them meets the worker that breaks.
        answers = await asyncio.gather(*(http.post(f"{there.url}/v1/chat/completions", json=body) for _ in range(2)))
    for answer in answers:
        assert answer.status_code == 200
        if stream:
            lines = [line[6:] for line in answer.text.splitlines() if line]
            assert lines[-1] == "[DONE]"
            choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
            assert "".join(choice["delta"].get("content", "") for choice in choices) == answer_to(HELLO)
            assert sum("role" in choice["delta"] for choice in choices) == 1
            # Nobody asked for ids.
            assert not any("token_ids" in choice for choice in choices)
        else:
            assert answer.json()["choices"][0]["message"]["content"] == answer_to(HELLO)
            assert answer.json()["usage"]["completion_tokens"] == 40
    assert sum(engine.prefilled for engine in engines) == 3


async def test_several_answers_go_on_each_by_itself():
    engines = [FakeEngine(delay_s=0.002) for _ in range(2)]
    async with rig(engines) as there, httpx.AsyncClient(trust_env=False) as http:
        there.proxies[0].cut_after(3000)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 40, "n": 3}
        answer = (await http.post(f"{there.url}/v1/chat/completions", json=body)).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == [answer_to(HELLO)] * 3


async def test_an_answer_that_continued_a_turn_goes_on_after_it():
    begun = Request("m", (user("hi"), assistant(answer_to(HELLO)[:60])), HELLO.sampling, continue_final=True)
    engines = [FakeEngine(with_ids=False) for _ in range(3)]
    async with rig(engines) as there:
        expected = (await read(there.client, begun)).text
        for proxy in there.proxies[:2]:
            proxy.cut_after(2500)
        reading = await read(there.client, begun)
    assert reading.error is None
    assert reading.text == expected


async def test_with_no_other_worker_the_reader_is_told_within_a_second_and_keeps_the_beginning():
    engine = FakeEngine(delay_s=0.01)
    async with rig([engine]) as there, httpx.AsyncClient(trust_env=False) as http:
        cut_at = 0.0

        def cut(count: int) -> None:
            nonlocal cut_at
            if count == 5:
                cut_at = time.monotonic()
                there.proxies[0].refuse()

        reading = await read(there.client, HELLO, on_chunk=cut)
        assert isinstance(reading.error, WorkerLost)
        took = reading.at - cut_at
        assert took < 1
        assert reading.text
        assert answer_to(HELLO).startswith(reading.text)
        there.proxies[0].heal()
        there.proxies[0].cut_after(3000)
        await asyncio.sleep(0.6)  # the circuit is open for so long
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        answer = await http.post(f"{there.url}/v1/chat/completions", json=body)
        lines = [line[6:] for line in answer.text.splitlines() if line]
        # An error event and no end: no reader takes the beginning for the whole.
        assert json.loads(lines[-1])["error"]["code"] == "WorkerLost"
        print(f"\nthe reader was told {took * 1000:.0f} ms after the only worker was lost")


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        (Sampling(logprobs=2), "log-probabilities"),
        (Sampling(grammar=Grammar("json_object")), "form"),
        (Sampling(presence_penalty=1.0), "penalty"),
        (Sampling(frequency_penalty=1.0), "penalty"),
    ],
)
async def test_what_text_alone_cannot_continue_is_said(sampling: Sampling, why: str):
    engines = [FakeEngine(with_ids=False) for _ in range(2)]
    async with rig(engines) as there:
        for proxy in there.proxies:
            proxy.cut_after(2500)
        reading = await read(there.client, Request("m", (user("hi"),), sampling))
    assert isinstance(reading.error, WorkerLost)
    assert why in str(reading.error)
    assert sum(engine.prefilled for engine in engines) == 1
    assert reading.text


async def test_the_lives_of_an_answer_are_counted():
    engines = [FakeEngine() for _ in range(6)]
    async with rig(engines, timings=ClientTimings(continuations=2)) as there:
        for proxy in there.proxies:
            proxy.cut_after(1500)
        reading = await read(there.client, HELLO)
    assert isinstance(reading.error, WorkerLost)
    assert answer_to(HELLO).startswith(reading.text)
    assert sum(engine.prefilled for engine in engines) == 3


class FailsLater(FakeEngine):
    """Raises after some words, for the first request only."""

    def __init__(self, error: LlavaError) -> None:
        super().__init__()
        self.error: LlavaError | None = error

    async def _answer(self, request: Request):
        count = 0
        async for chunk in super()._answer(request):
            if self.error is not None and count == 7:
                error, self.error = self.error, None
                raise error
            count += 1
            yield chunk


async def test_an_answer_that_ran_out_of_memory_goes_on_where_there_is_some():
    engines = [FailsLater(OutOfMemory("no memory left")), FailsLater(OutOfMemory("none here"))]
    engines[1].error = None
    async with rig(engines) as there:
        readings = [await read(there.client, HELLO) for _ in range(2)]
    assert [reading.text for reading in readings] == [answer_to(HELLO)] * 2
    assert sum(engine.prefilled for engine in engines) == 3


async def test_a_failure_that_the_request_itself_may_cause_is_not_carried_to_the_next_worker():
    engines = [FailsLater(EngineFailure("broken")) for _ in range(2)]
    async with rig(engines) as there:
        reading = await read(there.client, HELLO)
    assert isinstance(reading.error, EngineFailure)
    assert sum(engine.prefilled for engine in engines) == 1


async def test_a_worker_that_cannot_go_on_leaves_the_loss_to_be_told():
    engines = [FakeEngine(), FakeEngine()]
    async with rig(engines) as there:

        def lose(count: int) -> None:
            for proxy, engine in zip(there.proxies, engines, strict=True):
                if engine.running:
                    proxy.cut()
                else:
                    engine.failure = ContextOverflow("too long for this worker")

        for engine in engines:
            engine.delay_s = 0.005
        reading = await read(there.client, HELLO, on_chunk=lose)
    assert isinstance(reading.error, WorkerLost)
    assert reading.text
