"""Our own engine behind worker and controller: memory runs out, readers leave in mid-prefill, figures tell of it."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.errors import OutOfMemory
from llava_core.types import Request, Sampling, assistant, user
from tests.faults.lateness import Lateness
from tests.faults.rig import read, rig, until
from tests.faults.test_continued_engine import engine as made_of
from tests.faults.test_continued_engine import tiny
from tests.faults.test_observability import numbers

torch = pytest.importorskip("torch")

LONG = "word " * 120
PATIENCE_S = 60


@pytest.fixture
async def engine() -> AsyncIterator[TransformersEngine]:
    async with made_of(tiny(), step_tokens=16) as engine:
        assert isinstance(engine, TransformersEngine)
        yield engine


def ask(text: str, **sampling: Any) -> Request:
    return Request("m", (user(text),), Sampling(temperature=0, ignore_eos=True, **sampling))


def holds(engine: TransformersEngine) -> int:
    return engine.memory().kv_running


async def test_out_of_memory_ends_one_request_and_the_others_go_on(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
):
    step = engine._loop._parts.step
    run = step.run
    threshold = 100

    def starved(works: Any) -> Any:
        if any(len(work.sequence.prompt.ids) > threshold for work in works):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(works)

    async with rig([engine]) as there, httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        expected = (await read(there.client, ask("Stay", max_tokens=100))).text
        begun = asyncio.Event()
        staying = asyncio.create_task(
            read(there.client, ask("Stay", max_tokens=100), on_chunk=lambda count: begun.set())
        )
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        monkeypatch.setattr(step, "run", starved)
        failed = await read(there.client, ask(LONG, max_tokens=5))
        assert isinstance(failed.error, OutOfMemory)
        body = {"model": "m", "messages": [{"role": "user", "content": LONG}]}
        answer = await http.post(f"{there.url}/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "OutOfMemory")
        stayed = await staying
        assert (stayed.error, stayed.text) == (None, expected)
        await until(lambda: holds(engine) == 0, PATIENCE_S)
        monkeypatch.undo()
        assert (await read(there.client, ask(LONG, max_tokens=5))).error is None


async def test_a_reader_who_leaves_in_mid_prefill_stops_it_within_a_step_and_frees_its_memory(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
):
    step = engine._loop._parts.step
    run = step.run
    steps = 0
    going_on = threading.Event()

    def slow(works: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 1:
            going_on.wait(PATIENCE_S)
        return run(works)

    monkeypatch.setattr(step, "run", slow)
    async with rig([engine]) as there:
        leaving = asyncio.create_task(read(there.client, ask(LONG, max_tokens=5)))
        # In the middle of its prompt: one piece is computed, and another waits.
        await until(lambda: steps == 2, PATIENCE_S)
        assert holds(engine) > 0
        leaving.cancel()
        await asyncio.wait([leaving])
        await until(lambda: all(sequence.cancelled for sequence in engine._loop._running), PATIENCE_S)
        going_on.set()
        await until(lambda: engine.status().running == 0, PATIENCE_S)
        assert steps == 2
        await until(lambda: holds(engine) == 0, PATIENCE_S)


async def test_figures_of_the_cache_have_the_names_that_dashboards_know(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
):
    def value(found: dict[str, dict[tuple[str, ...], float]], name: str) -> float:
        return sum(count for labels, count in found[name].items() if not labels[0].endswith("_created"))

    step = engine._loop._parts.step
    run = step.run
    async with rig([engine]) as there, httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        worker = there.proxies[0].url
        first = ask("Name a colour", max_tokens=8)
        said = await read(there.client, first)
        before = await numbers(http, worker)
        assert value(before, "vllm:kv_cache_usage_perc") == value(before, "vllm:gpu_cache_usage_perc") == 0
        assert value(before, "llava:kv_cache_kept_perc") > 0
        messages = (*first.messages, assistant(said.text), user("And another"))
        second = Request("m", messages, Sampling(max_tokens=300, temperature=0, ignore_eos=True))
        # Held still once it runs, until the figures are read.
        holding = threading.Event()
        monkeypatch.setattr(step, "run", lambda works: (run(works), holding.wait(PATIENCE_S))[0])
        asking = asyncio.create_task(read(there.client, second))
        await until(lambda: holds(engine) > 0, PATIENCE_S)
        during = await numbers(http, worker)
        holding.set()
        whole = await asking
        after = await numbers(http, worker)
    assert 0 < value(during, "vllm:kv_cache_usage_perc") == value(during, "vllm:gpu_cache_usage_perc") <= 1
    usage = whole.end.usage
    assert usage is not None
    assert usage.cached_tokens > 0
    queries, hits = "vllm:prefix_cache_queries", "vllm:prefix_cache_hits"
    assert value(after, queries) - value(before, queries) == usage.prompt_tokens
    assert value(after, hits) - value(before, hits) == usage.cached_tokens


async def test_health_is_told_while_the_model_is_at_work(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch):
    """Also in the middle of a step, however long it takes: the loop that answers never waits for the model."""
    step = engine._loop._parts.step
    run = step.run
    holding = threading.Event()
    inside = threading.Event()

    def held(works: Any) -> Any:
        inside.set()
        holding.wait(PATIENCE_S)
        return run(works)

    lags: list[float] = []

    async def tick() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            lags.append(loop.time() - due)

    worst: list[float] = []
    answered: list[float] = []
    async with rig([engine]) as there, httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        monkeypatch.setattr(step, "run", held)
        asking = [asyncio.create_task(read(there.client, ask(LONG, max_tokens=20))) for _ in range(4)]
        await until(inside.is_set, PATIENCE_S)
        for url in (there.url, there.proxies[0].url):
            for path in ("/health/live", "/health/ready"):
                assert (await http.get(url + path)).status_code == 200
        assert not any(task.done() for task in asking)
        holding.set()
        assert all(reading.error is None for reading in await asyncio.gather(*asking))
        with Lateness() as late:
            for number in range(3):
                lags.clear()
                ticking = asyncio.create_task(tick())
                # Prompts that nobody has in a cache yet, and answers, so that both are computed side by side.
                texts = [f"{number} {each} {LONG}" for each in range(4)]
                asking = [asyncio.create_task(read(there.client, ask(text, max_tokens=40))) for text in texts]
                while not all(task.done() for task in asking):
                    began = time.monotonic()
                    assert (await http.get(f"{there.proxies[0].url}/health/live")).status_code == 200
                    answered.append(time.monotonic() - began)
                    await asyncio.sleep(0.01)
                ticking.cancel()
                assert all(task.result().error is None for task in asking)
                worst.append(sorted(lags)[int(0.99 * (len(lags) - 1))])
    print(
        f"\nwhile prompts and answers of 4 chats were computed, the event loop was late by "
        f"{', '.join(f'{1000 * each:.1f}' for each in worst)} ms (p99 of three rounds), and health was told within "
        f"{1000 * statistics.median(answered):.1f} ms; {late}"
    )
    assert min(worst) < late.allows(0.05)
    assert statistics.median(answered) < late.allows(0.05)
