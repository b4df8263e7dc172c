"""The transformers engine as a caller meets it: streams, stops, cancels, limits and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch

from llava_core.checkpoints.load import load_checkpoint
from llava_core.config import BatchLimits, EngineLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.errors import BadImage, BadRequest, ContextOverflow, EngineFailure, OutOfMemory, Overloaded
from llava_core.images import to_data_url
from llava_core.types import Chunk, ImagePart, Request, Sampling, user

FIXTURES = Path(__file__).parent.parent / "fixtures" / "original_checkpoints"
SQUARE = ImagePart(to_data_url((FIXTURES / "square.png").read_bytes()))


def make_engine(**changes: object) -> TransformersEngine:
    loaded = load_checkpoint(FIXTURES / "llava-v1.5-7b", device="cpu", dtype="float32", conv_template="llava_v1")
    given = {"batch": BatchLimits(kv_bytes=64 * 1024 * 1024), **changes}
    return TransformersEngine(loaded, **given)  # pyright: ignore[reportArgumentType]


@pytest.fixture
async def engine() -> AsyncIterator[TransformersEngine]:
    engine = make_engine()
    yield engine
    await engine.aclose()


def ask(*parts: str | ImagePart, **sampling: object) -> Request:
    chosen = {"temperature": 0.0, "max_tokens": 16, "ignore_eos": True, **sampling}
    return Request(model="m", messages=(user(*parts),), sampling=Sampling(**chosen))  # pyright: ignore[reportArgumentType]


async def answer(engine: TransformersEngine, request: Request) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def idle(engine: TransformersEngine) -> None:
    """Until nothing runs; the model thread needs a step to notice a reader who left."""
    await until(lambda: not engine.status().running and not engine.status().waiting)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  what is waited for happens in the model thread
            await asyncio.sleep(0.005)


async def test_an_answer_streams_in_pieces_and_ends_with_its_usage(engine: TransformersEngine) -> None:
    chunks = await answer(engine, ask(SQUARE, "What is this?"))
    assert len(chunks) > 3
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    usage = chunks[-1].usage
    assert chunks[-1].finish_reason == "length"
    assert usage is not None
    assert (usage.completion_tokens, usage.image_tokens, usage.cached_tokens) == (16, 25, 0)
    assert usage.prompt_tokens > 25


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine: TransformersEngine) -> None:
    whole = text_of(await answer(engine, ask("Tell me")))
    stop = whole[5:9]
    chunks = await answer(engine, ask("Tell me", stop=(stop,)))
    assert chunks[-1].finish_reason == "stop"
    assert text_of(chunks) == whole[: whole.index(stop)]


async def test_a_stop_token_ends_the_answer(engine: TransformersEngine) -> None:
    tokens = [logprob.token_id for chunk in await answer(engine, ask("Go", logprobs=0)) for logprob in chunk.logprobs]
    end = tokens[4]
    chunks = await answer(engine, ask("Go", stop_token_ids=(end,), ignore_eos=False, logprobs=0))
    assert chunks[-1].finish_reason == "stop"
    assert [logprob.token_id for chunk in chunks for logprob in chunk.logprobs] == tokens[: tokens.index(end)]


async def test_the_same_seed_gives_the_same_answer_alone_and_in_company(engine: TransformersEngine) -> None:
    request = ask("Say something", temperature=1.0, seed=7)
    alone = text_of(await answer(engine, request))
    others = [ask(f"Other {n}", temperature=1.0, max_tokens=8 + n) for n in range(5)]
    together, *_ = await asyncio.gather(*(answer(engine, one) for one in (request, *others)))
    assert text_of(together) == alone
    assert text_of(await answer(engine, ask("Say something", temperature=1.0, seed=8))) != alone


async def test_log_probabilities_name_the_likeliest_tokens_first(engine: TransformersEngine) -> None:
    chunks = await answer(engine, ask("Go", logprobs=3))
    reported = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert len(reported) == 16
    for logprob in reported:
        assert logprob.top[0][0] == logprob.token_id
        assert logprob.top[0][2] >= logprob.top[1][2] >= logprob.top[2][2]


async def test_a_reader_who_leaves_frees_the_slot_and_the_others_go_on(engine: TransformersEngine) -> None:
    expected = text_of(await answer(engine, ask("Stay here", max_tokens=64)))
    stays = asyncio.create_task(answer(engine, ask("Stay here", max_tokens=64)))
    leaves = engine.generate(ask(SQUARE, "Leave", max_tokens=800))
    async for _ in leaves:
        break
    await leaves.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    assert text_of(await stays) == expected
    await idle(engine)
    assert engine.status().running == 0


async def test_a_chat_beyond_the_context_is_refused_with_numbers(engine: TransformersEngine) -> None:
    with pytest.raises(ContextOverflow, match=r"\d+ tokens long.*holds 1024"):
        await answer(engine, ask("word " * 3000))
    usage = (await answer(engine, ask("Hi", max_tokens=1020)))[-1].usage
    assert usage is not None
    assert usage.prompt_tokens + usage.completion_tokens == 1024, "an answer takes no more than what is left"
    assert (await answer(engine, ask("Hi")))[-1].finish_reason == "length"


async def test_without_a_maximum_the_answer_takes_what_the_context_leaves(engine: TransformersEngine) -> None:
    usage = (await answer(engine, ask("Hi", max_tokens=None)))[-1].usage
    assert usage is not None
    assert usage.prompt_tokens + usage.completion_tokens == 1024


async def test_a_full_queue_says_when_to_come_back() -> None:
    engine = make_engine(limits=EngineLimits(max_running=1, max_waiting=1))
    try:
        first = engine.generate(ask("one", max_tokens=400))
        await anext(first)
        second = asyncio.create_task(answer(engine, ask("two")))
        await until(lambda: engine.status().waiting > 0)
        with pytest.raises(Overloaded) as refused:
            await answer(engine, ask("three"))
        assert refused.value.retry_after
        await first.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        assert (await second)[-1].finish_reason == "length"
    finally:
        await engine.aclose()


async def test_waiting_too_long_ends_with_overloaded() -> None:
    engine = make_engine(limits=EngineLimits(max_running=1, max_wait_s=0.05))
    try:
        first = engine.generate(ask("one", max_tokens=900))
        await anext(first)
        with pytest.raises(Overloaded, match="no room came free"):
            await answer(engine, ask("two"))
        await first.aclose()  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        await engine.aclose()


async def test_a_broken_picture_is_the_callers_error_and_the_next_request_works(engine: TransformersEngine) -> None:
    with pytest.raises(BadImage):
        await answer(engine, ask(ImagePart("data:image/png;base64,aGVsbG8="), "What is this?"))
    assert (await answer(engine, ask(SQUARE, "And this?")))[-1].finish_reason == "length"


async def test_a_token_beyond_the_vocabulary_is_refused_by_name(engine: TransformersEngine) -> None:
    with pytest.raises(BadRequest, match="logit_bias names token 999999"):
        await answer(engine, ask("Hi", logit_bias={999999: 1.0}))


@pytest.mark.parametrize(
    ("cause", "expected"),
    [(torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory), (ValueError("surprise"), EngineFailure)],
)
async def test_a_failing_picture_ends_its_own_request_only(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, cause: Exception, expected: type[Exception]
) -> None:
    def fails(images: object) -> list[torch.Tensor]:
        raise cause

    stays = engine.generate(ask("Stay", max_tokens=100))
    await anext(stays)
    with monkeypatch.context() as patch:
        patch.setattr(engine._loaded, "encode", fails)
        with pytest.raises(expected) as failed:
            await answer(engine, ask(SQUARE, "What is this?"))
    assert type(failed.value) is expected
    assert "surprise" not in str(failed.value)
    assert [chunk async for chunk in stays][-1].finish_reason == "length"
    assert (await answer(engine, ask(SQUARE, "What is this?")))[-1].finish_reason == "length"


async def test_a_failing_step_ends_only_the_request_at_fault(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = engine._loaded.model.forward

    def fails_at_long_rows(*args: object, **kwargs: object) -> object:
        if torch.is_tensor(ids := kwargs.get("input_ids")) and ids.shape[1] > 100:
            raise RuntimeError("a poisoned row")
        return forward(*args, **kwargs)

    expected = text_of(await answer(engine, ask("Stay", max_tokens=100)))
    stays = engine.generate(ask("Stay", max_tokens=100))
    first = await anext(stays)
    monkeypatch.setattr(engine._loaded.model, "forward", fails_at_long_rows)
    with pytest.raises(EngineFailure, match="the worker's log tells why"):
        await answer(engine, ask("word " * 60))
    assert first.text + text_of([chunk async for chunk in stays]) == expected


async def test_closing_ends_running_requests_with_an_error() -> None:
    engine = make_engine()
    stream = engine.generate(ask("Hi", max_tokens=800))
    await anext(stream)
    await engine.aclose()
    with pytest.raises(EngineFailure, match="shutting down"):
        async for _ in stream:
            pass
