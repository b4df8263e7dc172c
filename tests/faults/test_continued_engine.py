"""Our own engine goes on with an answer that another copy of it began: the same tokens, numbers, text and counts."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llava_core.config import BatchLimits
from llava_core.engines.base import Engine
from llava_core.engines.load import EngineOptions, load_engine
from llava_core.errors import BadRequest, ContextOverflow
from llava_core.types import Begun, Chunk, Grammar, Request, Sampling, assistant, user
from tests.engines.contenders import babel_folder, picture
from tests.faults.rig import read, rig

CASES = {
    "greedy": Sampling(max_tokens=24, temperature=0),
    "seeded": Sampling(max_tokens=24, temperature=1.0, top_p=0.9, seed=7),
    "penalised": Sampling(
        max_tokens=24, temperature=0, presence_penalty=1.5, frequency_penalty=0.5, repetition_penalty=1.2
    ),
    "least tokens": Sampling(max_tokens=24, temperature=0, min_tokens=20),
    "endless": Sampling(max_tokens=24, temperature=0.7, seed=1, ignore_eos=True),
    "log-probabilities": Sampling(max_tokens=12, temperature=0, logprobs=2),
    "a form": Sampling(max_tokens=40, temperature=0, grammar=Grammar("regex", "[a-z]{3}-[0-9]{12}")),
}
CHAT = (user(picture(), "What is this? Tell me all of it."),)


@functools.cache
def tiny() -> Path:
    from llava_core.checkpoints.tiny import build_tiny

    return build_tiny("llava", Path(tempfile.mkdtemp(prefix="continued-")) / "m")


@asynccontextmanager
async def engine(folder: Path, **batch: object) -> AsyncIterator[Engine]:
    limits = BatchLimits(kv_bytes=64 << 20, threads=1, **batch)  # pyright: ignore[reportArgumentType]
    made = load_engine(
        "transformers",
        EngineOptions(model_path=str(folder), model_name="m", device="cpu", dtype="float32", batch=limits),
    )
    try:
        yield made
    finally:
        await made.aclose()


async def chunks_of(engine: Engine, request: Request) -> list[Chunk]:
    async with asyncio.timeout(60):
        return [chunk async for chunk in engine.generate(request)]


def begun(chunks: list[Chunk]) -> Begun:
    return Begun("".join(chunk.text for chunk in chunks), tuple(token for chunk in chunks for token in chunk.token_ids))


async def test_from_every_place_an_answer_goes_on_as_it_would_have():
    try:
        import xgrammar  # noqa: F401
    except ImportError:
        cases = {name: sampling for name, sampling in CASES.items() if sampling.grammar is None}
    else:
        cases = CASES
    # Steps of a few tokens, so that what has come is computed in several, like any long prompt.
    async with engine(tiny()) as first, engine(tiny(), step_tokens=8) as second:
        for name, sampling in cases.items():
            request = Request("m", CHAT, sampling)
            whole = await chunks_of(first, request)
            assert len(whole) > 4, name
            for place in range(1, len(whole), 6):
                rest = await chunks_of(second, replace(request, begun=begun(whole[:place])))
                both = whole[:place] + rest
                assert begun(both) == begun(whole), (name, place)
                assert rest[-1].finish_reason == whole[-1].finish_reason, (name, place)
                assert rest[-1].usage is not None
                assert whole[-1].usage is not None
                assert replace(rest[-1].usage, cached_tokens=0) == replace(whole[-1].usage, cached_tokens=0)
                tokens = [token for chunk in both for token in chunk.logprobs]
                for one, other in zip(tokens, [t for chunk in whole for t in chunk.logprobs], strict=True):
                    assert (one.token_id, one.logprob) == (other.token_id, pytest.approx(other.logprob, abs=1e-4))


async def test_half_characters_and_stop_strings_are_kept_whole_across_the_break():
    async with engine(babel_folder()) as one:
        for sampling in (
            Sampling(max_tokens=37, temperature=0),
            Sampling(max_tokens=60, temperature=0, stop=("ж aü🙂東ж a",), min_tokens=3),
            Sampling(max_tokens=60, temperature=0, stop=("ü🙂東ж aü🙂X", "東ж aü🙂東ж ")),
        ):
            request = Request("m", (user("hi"),), sampling)
            whole = await chunks_of(one, request)
            for place in range(1, len(whole)):
                rest = await chunks_of(one, replace(request, begun=begun(whole[:place])))
                assert begun(whole[:place] + rest) == begun(whole), place
                assert rest[-1].finish_reason == whole[-1].finish_reason


async def test_an_answer_that_went_on_with_a_turn_and_broke_off_goes_on_again():
    async with engine(tiny()) as one:
        first = await chunks_of(one, Request("m", CHAT, Sampling(max_tokens=6, temperature=0)))
        turn = assistant("".join(chunk.text for chunk in first))
        request = Request("m", (*CHAT, turn), Sampling(max_tokens=12, temperature=0), continue_final=True)
        whole = await chunks_of(one, request)
        for place in range(1, len(whole)):
            rest = await chunks_of(one, replace(request, begun=begun(whole[:place])))
            assert begun(whole[:place] + rest) == begun(whole)


async def test_ids_that_are_no_beginning_of_this_answer_are_refused():
    request = Request("m", (user("hi"),), Sampling(max_tokens=9, temperature=0))
    async with engine(tiny()) as one:
        whole = begun(await chunks_of(one, replace(request, sampling=replace(request.sampling, ignore_eos=True))))
        for wrong in (
            Begun("other words", whole.token_ids[:3]),
            Begun("", (10**9,)),
            Begun("", (one._loaded.facts.image_token_id,)),  # pyright: ignore[reportAttributeAccessIssue]
            Begun("", tuple(one._loaded.facts.eos_ids)),  # pyright: ignore[reportAttributeAccessIssue]
        ):
            with pytest.raises(BadRequest):
                await chunks_of(one, replace(request, begun=wrong))
        with pytest.raises(ContextOverflow, match="9 tokens"):
            await chunks_of(one, replace(request, begun=whole))
        assert await chunks_of(one, request)


async def test_real_workers_lose_no_token_when_connections_break():
    requests = [
        Request("m", (user(picture(), f"Number {number}?"),), sampling)
        for number in range(4)
        for sampling in (CASES["greedy"], CASES["seeded"], CASES["endless"])
    ]
    async with engine(tiny()) as first, engine(tiny()) as second, rig([first, second, second]) as there:
        expected = [await read(there.client, request) for request in requests]
        for proxy in there.proxies[:2]:
            proxy.cut_after(6000)
        readings = await asyncio.gather(*(read(there.client, request) for request in requests))
    for reading, whole in zip(readings, expected, strict=True):
        assert reading.error is None
        assert reading.text == whole.text
        assert reading.end.finish_reason == whole.end.finish_reason
