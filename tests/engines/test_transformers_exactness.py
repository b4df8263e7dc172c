"""Greedy ids of the transformers engine equal those of `generate`, whatever else runs and however it is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from exactness import FAMILIES, PICTURE_FAMILIES, greedy, load, picture, reference, token_ids

from llava_core.checkpoints.base import Prompt
from llava_core.config import BatchLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.types import Message, Request, Sampling, assistant, system, user

MIB = 1024 * 1024
BACKENDS = ("auto", "padded")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


class Watched(TransformersEngine):
    """Remembers the prompt that each request was prefilled with, answers kept as they were generated."""

    def _sequence(self, request: Request, prompt: Prompt, *more: Any) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        sequence = super()._sequence(request, prompt, *more)
        self.__dict__.setdefault("seen", {})[request.id] = sequence
        return sequence

    def generated(self, request: Request) -> list[int]:
        return self.__dict__["seen"][request.id].generated

    def prompt_of(self, request: Request) -> Prompt:
        return self.__dict__["seen"][request.id].prompt


def make(family: str, *, step_tokens: int = 64, backend: str = "auto", **changes: object) -> Watched:
    batch = BatchLimits(step_tokens=step_tokens, kv_bytes=64 * MIB, **changes)  # pyright: ignore[reportArgumentType]
    return Watched(load(family), batch=batch, backend=backend)


@pytest.fixture
async def engine(family: str) -> AsyncIterator[Watched]:
    engine = make(family)
    yield engine
    await engine.aclose()


def chats(family: str, count: int) -> list[tuple[Message, ...]]:
    """Chats of different lengths; with pictures of different sizes where the family takes them."""
    found: list[tuple[Message, ...]] = []
    for number in range(count):
        words = f"number {number} " + "please tell me more about it " * (1 + 3 * (number % 4))
        if family in PICTURE_FAMILIES and number % 4 != 3:
            size = ((48, 40), (40, 90), (120, 60))[number % 3]
            parts = [picture(number, *size), words]
            if number % 4 == 2:
                parts.append(picture(100 + number))
            found.append((user(*parts),))
        else:
            found.append((system("be brief"), user("hello"), assistant("good day"), user(words)))
    return found


async def check(engine: Watched, family: str, request: Request) -> None:
    ids = await token_ids(engine, request)
    assert ids == reference(family, engine.prompt_of(request), len(ids)), request.messages[-1].text[:40]


async def test_alone(engine: Watched, family: str) -> None:
    for messages in chats(family, 4):
        await check(engine, family, greedy(*messages))


async def test_in_a_batch_of_eight_with_other_lengths(engine: Watched, family: str) -> None:
    requests = [greedy(*messages, tokens=6 + 2 * n) for n, messages in enumerate(chats(family, 8))]
    await asyncio.gather(*(check(engine, family, request) for request in requests))


@pytest.mark.parametrize("step_tokens", [1, 23, 4096])
async def test_with_any_chunk_size(family: str, step_tokens: int) -> None:
    engine = make(family, step_tokens=step_tokens)
    try:
        await asyncio.gather(*(check(engine, family, greedy(*m, tokens=3)) for m in chats(family, 2)))
    finally:
        await engine.aclose()


async def test_through_the_backend_that_runs_on_any_device(family: str) -> None:
    engine = make(family, step_tokens=33, backend="padded")
    try:
        await asyncio.gather(*(check(engine, family, greedy(*m)) for m in chats(family, 6)))
    finally:
        await engine.aclose()


async def test_after_neighbours_left_in_the_middle(engine: Watched, family: str) -> None:
    leaving = [engine.generate(greedy(*messages, tokens=500)) for messages in chats(family, 3)]
    staying = greedy(*chats(family, 5)[4], tokens=40)
    task = asyncio.create_task(token_ids(engine, staying))
    for stream in leaving:
        await anext(stream)
        await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    assert await task == reference(family, engine.prompt_of(staying), 40)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_later_turns_go_on_from_parked_keys_and_values(family: str, backend: str) -> None:
    engine = make(family, backend=backend)
    try:
        await asyncio.gather(*(talk(engine, family, n, messages) for n, messages in enumerate(chats(family, 3))))
    finally:
        await engine.aclose()


async def talk(engine: Watched, family: str, number: int, opening: tuple[Message, ...]) -> None:
    messages = list(opening)
    known = 0
    for turn in range(3):
        request = greedy(*messages, owner=f"person {number}", tokens=10)
        text, ids = "", []
        async for chunk in engine.generate(request):
            text += chunk.text
            ids += [logprob.token_id for logprob in chunk.logprobs]
            usage = chunk.usage
        assert usage is not None
        prompt = engine.prompt_of(request)
        assert ids == reference(family, prompt, len(ids)), f"turn {turn + 1}"
        if turn:
            # The last drawn id is not computed before it is needed; all else of the turn before is there.
            assert usage.cached_tokens >= known - 1, f"turn {turn + 1}"
        known = len(prompt.ids) + len(ids)
        messages += [assistant(text), user(f"and what about {turn}?")]


async def test_a_picture_shown_again_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make("llava_next")
    try:
        encode, seen = engine._loaded.encode, []
        monkeypatch.setattr(engine._loaded, "encode", lambda images: seen.append(len(images)) or encode(images))
        for opening in ("Look.", "Well, look here.", "And here?"):
            # Words before the picture: no keys and values that were kept can stand for it.
            await check(engine, "llava_next", greedy(user(opening, picture(5), "What is it?"), owner="one"))
        assert seen == [1]
        await check(engine, "llava_next", greedy(user("Look.", picture(5), "What is it?"), owner="another"))
        assert seen == [1, 1]
    finally:
        await engine.aclose()


async def test_several_answers_to_one_prompt_prefill_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make("llava_next")
    try:
        step = engine._loop._parts.step
        run, rows = step.run, []
        monkeypatch.setattr(step, "run", lambda works: rows.extend(work.rows for work in works) or run(works))
        requests = [greedy(user(picture(1), "tell me all about it " * 30), tokens=8) for _ in range(4)]
        answers = await asyncio.gather(*(token_ids(engine, request) for request in requests))
        prompt = engine.prompt_of(requests[0])
        assert answers == [reference("llava_next", prompt, 8)] * 4
        assert sum(rows) < 2 * len(prompt.ids) + 4 * 8
    finally:
        await engine.aclose()


async def test_the_same_chat_twice_draws_from_what_the_first_computed(engine: Watched, family: str) -> None:
    messages = chats(family, 1)[0]
    for expected in (False, True):
        request = greedy(*messages)
        chunks = [chunk async for chunk in engine.generate(request)]
        usage = chunks[-1].usage
        assert usage is not None
        assert (usage.cached_tokens == usage.prompt_tokens - 1) is expected
        ids = [logprob.token_id for chunk in chunks for logprob in chunk.logprobs]
        assert ids == reference(family, engine.prompt_of(request), len(ids))


@pytest.mark.parametrize("backend", BACKENDS)
async def test_guessing_ahead_changes_no_answer(family: str, backend: str) -> None:
    engine = make(family, backend=backend)
    try:
        sampling = Sampling(temperature=0, max_tokens=40, ignore_eos=True)
        requests = [Request("tiny", messages, sampling) for messages in chats(family, 4)]
        chunks = [chunk async for chunk in engine.generate(requests[0])]
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.completion_tokens == 40
        assert "".join(chunk.text for chunk in chunks) == engine._decode(engine.generated(requests[0]))
        await asyncio.gather(*(drain(engine, request) for request in requests[1:]))
        for request in requests:
            assert engine.generated(request) == reference(family, engine.prompt_of(request), 40)
    finally:
        await engine.aclose()


async def drain(engine: Watched, request: Request) -> None:
    async for _ in engine.generate(request):
        pass


async def test_a_text_that_repeats_itself_takes_fewer_steps_than_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make("qwen3_vl")
    try:
        step = engine._loop._parts.step
        run, steps = step.run, []
        monkeypatch.setattr(step, "run", lambda works: steps.append(len(works)) or run(works))
        for speculates in (True, False):
            steps.clear()
            # A model with random weights falls into a loop sooner or later.
            sampling = Sampling(temperature=0, max_tokens=300, ignore_eos=True, logprobs=None if speculates else 0)
            await drain(engine, Request("tiny", (user("again and again and again and"),), sampling))
            assert (len(steps) < 270) is speculates
    finally:
        await engine.aclose()


async def test_penalties_equal_those_of_generate() -> None:
    engine = make("llava")
    try:
        messages = chats("llava", 1)[0]
        request = Request(
            "tiny",
            messages,
            Sampling(temperature=0, max_tokens=20, ignore_eos=True, logprobs=0, repetition_penalty=1.7),
        )
        ids = await token_ids(engine, request)
        prompt = engine.prompt_of(request)
        assert ids == reference("llava", prompt, 20, repetition_penalty=1.7)
        assert ids != reference("llava", prompt, 20)
    finally:
        await engine.aclose()
