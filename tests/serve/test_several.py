"""Several answers to one request: merged as they come, alike for the same seed, and gone together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import openai
import pytest

from llava_core.engines.load import EngineOptions, load_engine
from llava_core.errors import Overloaded, WorkerLost
from llava_core.types import Chunk, Request, Sampling, Usage, user
from serve.several import several
from serve.worker_app import create_app
from tests.engines.contenders import picture, tiny_folder
from tests.faults.fake_engine import FakeEngine
from tests.faults.rig import until
from tests.serve.serving import ScriptedEngine, serving

SEEDED = Request("m", (user("hi"),), Sampling(seed=7), id="r")


async def by_seed(request: Request) -> AsyncGenerator[Chunk]:
    yield Chunk("seed ")
    await asyncio.sleep(0)
    yield Chunk(str(request.sampling.seed))
    yield Chunk(finish_reason="stop", usage=Usage(10, 2, 4, 1))


async def answers(script: Any, n: int, request: Request = SEEDED) -> tuple[list[str], list[Chunk]]:
    chunks = [chunk async for chunk in several(script, request, n)]
    return ["".join(chunk.text for chunk in chunks if chunk.index == index) for index in range(n)], chunks


async def test_each_answer_has_a_seed_of_its_own_and_the_same_request_the_same_ones() -> None:
    texts, chunks = await answers(by_seed, 4)
    assert texts[0] == "seed 7", "the first is what it would be alone"
    assert len(set(texts)) == 4
    assert (await answers(by_seed, 4))[0] == texts
    assert (await answers(by_seed, 2))[0] == texts[:2]
    assert [chunk.index for chunk in chunks if chunk.finish_reason] != []
    assert {chunk.index for chunk in chunks if chunk.finish_reason} == {0, 1, 2, 3}


async def test_the_last_chunk_counts_the_prompt_once_and_all_answers() -> None:
    _, chunks = await answers(by_seed, 3)
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(10, 6, 4, 1)]
    assert chunks[-1].usage


async def test_the_others_begin_when_the_first_has_its_prompt() -> None:
    began: list[str] = []
    go_on = asyncio.Event()

    async def script(request: Request) -> AsyncGenerator[Chunk]:
        began.append(request.id)
        if request.id == "r":
            await go_on.wait()
        async for chunk in by_seed(request):
            yield chunk

    reading = asyncio.create_task(answers(script, 3))
    for _ in range(20):
        await asyncio.sleep(0)
    assert began == ["r"]
    go_on.set()
    await reading
    assert sorted(began) == ["r", "r-1", "r-2"]


@pytest.mark.parametrize("failing", ["r", "r-2"])
async def test_an_error_in_one_ends_all_with_it(failing: str) -> None:
    open_streams: set[str] = set()

    async def script(request: Request) -> AsyncGenerator[Chunk]:
        open_streams.add(request.id)
        try:
            if request.id == failing:
                raise Overloaded("full")
            yield Chunk("a")
            await asyncio.Event().wait()
        finally:
            open_streams.discard(request.id)

    with pytest.raises(Overloaded):
        await answers(script, 3)
    assert not open_streams


async def test_an_answer_without_an_end_is_a_lost_one() -> None:
    async def script(request: Request) -> AsyncGenerator[Chunk]:
        yield Chunk("a")

    with pytest.raises(WorkerLost):
        await answers(script, 2)


async def test_leaving_frees_all() -> None:
    open_streams: set[str] = set()

    async def script(request: Request) -> AsyncGenerator[Chunk]:
        open_streams.add(request.id)
        try:
            while True:
                yield Chunk("a")
                await asyncio.sleep(0)
        finally:
            open_streams.discard(request.id)

    async with aclosing(several(script, SEEDED, 3)) as chunks:
        seen: set[int] = set()
        while len(seen) < 3:
            seen.add((await anext(chunks)).index)
        assert len(open_streams) == 3
    assert not open_streams


async def test_the_openai_client_gets_them_whole_and_streamed() -> None:
    async with serving(create_app(ScriptedEngine(by_seed))) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)
        create: Any = client.chat.completions.create
        common: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 7, "n": 3}
        whole = await create(**common)
        texts = [choice.message.content for choice in whole.choices]
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        assert whole.usage.completion_tokens == 6
        assert whole.usage.prompt_tokens == 10
        streamed = ["", "", ""]
        roles: list[int] = []
        ends: list[int] = []
        async for event in await create(**common, stream=True, stream_options={"include_usage": True}):
            for choice in event.choices:
                streamed[choice.index] += choice.delta.content or ""
                roles += [choice.index] if choice.delta.role else []
                ends += [choice.index] if choice.finish_reason else []
            if event.usage:
                assert event.usage.completion_tokens == 6
        assert streamed == texts
        assert sorted(roles) == sorted(ends) == [0, 1, 2]
        await client.close()


async def test_a_worker_refuses_more_answers_than_it_has_room_for_before_it_begins_any():
    engine = FakeEngine(capacity=2, max_waiting=1)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    async with serving(create_app(engine)) as url, httpx.AsyncClient(timeout=20, trust_env=False) as http:

        async def ask(n: int) -> httpx.Response:
            return await http.post(f"{url}/v1/chat/completions", json={**body, "n": n})

        engine.hold.clear()
        held = asyncio.create_task(ask(1))
        await until(lambda: engine.running == 1)
        assert (await ask(3)).status_code == 429
        assert (await ask(4)).status_code == 400
        assert len(engine.asked) == 1
        engine.hold.set()
        assert (await held).status_code == 200
        assert (await ask(3)).status_code == 200


async def test_a_reader_of_several_who_leaves_frees_the_engine() -> None:
    engine = ScriptedEngine()
    running: set[str] = set()
    freed = asyncio.Event()

    async def script(request: Request) -> AsyncGenerator[Chunk]:
        running.add(request.id)
        try:
            while True:
                yield Chunk("a ")
                await asyncio.sleep(0.001)
        finally:
            running.discard(request.id)
            if not running:
                freed.set()

    engine.script = script
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "n": 4, "stream": True}
    async with serving(create_app(engine)) as url, httpx.AsyncClient(timeout=20, trust_env=False) as http:
        async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            while True:
                line = await anext(lines)
                if line and json.loads(line.removeprefix("data: "))["choices"][0]["index"] == 3:
                    break
        await asyncio.wait_for(freed.wait(), 10)
    assert not running


async def test_the_prompt_of_several_answers_is_computed_once() -> None:
    options = EngineOptions(model_path=str(tiny_folder("llava")), device="cpu", dtype="float32")
    engine = load_engine("transformers", options)
    usages: list[Usage] = []

    async def watched(request: Request) -> AsyncGenerator[Chunk]:
        async for chunk in engine.generate(request):
            if chunk.usage:
                usages.append(chunk.usage)
            yield chunk

    drawn = Sampling(seed=3, temperature=1.0, max_tokens=30, ignore_eos=True)
    wanted = Request("m", (user(picture(), "Tell me a long story, please."),), drawn)
    try:
        texts, chunks = await answers(watched, 4, wanted)
        assert len(set(texts)) == 4
        assert (await answers(watched, 4, wanted))[0] == texts
    finally:
        await engine.aclose()
    fresh = [usage for usage in usages[:4] if usage.cached_tokens == 0]
    assert len(fresh) == 1
    assert all(usage.cached_tokens == usage.prompt_tokens - 1 for usage in usages[:4] if usage not in fresh)
    assert chunks[-1].usage == Usage(
        fresh[0].prompt_tokens, 4 * 30, image_tokens=fresh[0].image_tokens, cached_tokens=0
    )
