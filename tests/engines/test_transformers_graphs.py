"""Decode steps that are replayed from recordings give the ids of those that are computed anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import FAMILIES, PICTURE_FAMILIES, greedy, load, picture, reference, token_ids
from torch.utils._python_dispatch import TorchDispatchMode

from llava_core.checkpoints.base import Prompt
from llava_core.config import BatchLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.engines.transformers.graphs import GraphedStep, batch_sizes
from llava_core.types import Message, Request, Sampling, assistant, user

MIB = 1024 * 1024


class Tape(TorchDispatchMode):
    """Records as a CUDA graph does: operations on memory, with every number of the host as it was. A replay does the
    same operations on the same tensors and runs no Python of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert func is not torch.ops.aten._local_scalar_dense.default, "a recording cannot wait for a number"
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, before in self.operations:
            now = func(*args, **kwargs)
            for old, new in zip(_tensors(before), _tensors(now), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(result: Any) -> list[torch.Tensor]:
    parts = result if isinstance(result, tuple | list) else [result]
    return [part for part in parts if isinstance(part, torch.Tensor)]


class TapeRecorder:
    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.broken = False

    def record(self, function: Callable[[], torch.Tensor]) -> tuple[Tape, torch.Tensor]:
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing")
        function()
        with Tape() as tape:
            logits = function()
        self.tapes.append(tape)
        return tape, logits

    @property
    def replays(self) -> int:
        return sum(tape.replays for tape in self.tapes)


class Graphed(TransformersEngine):
    """An engine on the padded backend whose decode steps are replayed from tapes."""

    def __init__(self, family: str, *, most_rows: int = 8, speculate: Any = "off") -> None:
        batch = BatchLimits(step_tokens=64, kv_bytes=64 * MIB, speculate=speculate)
        super().__init__(load(family), batch=batch, backend="padded")
        self.recorder = TapeRecorder()
        self.plain = self.computed = 0
        parts: Any = self._loop._parts
        run = parts.step.run

        def counted(works: Any) -> torch.Tensor:
            self.plain += 1
            return run(works)

        object.__setattr__(parts.step, "run", counted)
        positions = self._loaded.positions(Prompt((5, 6)))
        self.graphs = GraphedStep(
            parts.step,
            self._loaded.model,
            self._store.backend,  # pyright: ignore[reportArgumentType]
            self.recorder,
            most_rows=most_rows,
            three_positions=positions is not None,
        )
        object.__setattr__(parts, "step", self.graphs)

    async def check(self, family: str, *messages: Message, tokens: int = 12) -> None:
        images = [part for message in messages for part in message.images]
        request = greedy(*messages, tokens=tokens)
        taken = await self._pictures.take(images, owner="")
        prompt = self._loaded.prompt(request.messages, taken.pictures)
        assert await token_ids(self, request) == reference(family, prompt, tokens)


def opening(family: str, number: int) -> Message:
    words = f"number {number} " + "and then " * (5 * (number % 3))
    if family in PICTURE_FAMILIES and number % 2:
        return user(picture(number, 60, 48), words)
    return user(words)


@pytest.mark.parametrize("family", FAMILIES)
async def test_ids_are_those_of_generate_alone_and_among_others(family: str) -> None:
    engine = Graphed(family)
    try:
        await engine.check(family, opening(family, 1))
        counts = [24 + 3 * number for number in range(3)]
        await asyncio.gather(
            *(engine.check(family, opening(family, n), tokens=count) for n, count in enumerate(counts))
        )
        assert engine.recorder.replays > 20
        sizes = {key[0] for key in engine.graphs._graphs}
        assert 1 in sizes
        assert 4 in sizes, "three rows were filled up to four"
        assert engine.plain < engine.recorder.replays
    finally:
        await engine.aclose()


async def test_lengths_grow_within_one_recording_and_beyond_it() -> None:
    engine = Graphed("llama")
    try:
        await engine.check("llama", user("go on " * 60), tokens=150)
        reaches = sorted(key[1] for key in engine.graphs._graphs)
        assert reaches[0] == 256
        assert len(reaches) == 2, "a longer chat takes a wider recording"
        assert engine.recorder.replays == 149
    finally:
        await engine.aclose()


async def test_guesses_are_computed_as_before() -> None:
    words = user(picture(3), "again " * 30)
    texts: list[str] = []
    for speculate in ("on", "off"):
        engine = Graphed("llava", speculate=speculate)
        try:
            request = Request("m", (words,), Sampling(temperature=0.0, max_tokens=60, ignore_eos=True))
            texts.append("".join([chunk.text async for chunk in engine.generate(request)]))
            assert (engine.plain > 2) == (speculate == "on"), "one for the prompt's two chunks each, more for guesses"
            assert engine.recorder.replays > 10
        finally:
            await engine.aclose()
    assert texts[0] == texts[1]


async def test_more_rows_than_the_largest_recording_run_without() -> None:
    engine = Graphed("llama", most_rows=2)
    try:
        await asyncio.gather(*(engine.check("llama", opening("llama", n), tokens=10) for n in range(4)))
        assert {key[0] for key in engine.graphs._graphs} <= {1, 2}
    finally:
        await engine.aclose()


async def test_rows_that_fill_up_disturb_no_parked_chat() -> None:
    engine = Graphed("llama", most_rows=4)
    try:
        first = user("tell me something about trains")
        text = ""
        request = Request("m", (first,), Sampling(temperature=0.0, max_tokens=20, ignore_eos=True), owner="a")
        async for chunk in engine.generate(request):
            text += chunk.text
        await asyncio.gather(*(engine.check("llama", opening("llama", n), tokens=20) for n in range(3)))
        await engine.check("llama", first, assistant(text), user("and ships?"))
    finally:
        await engine.aclose()


async def test_a_model_that_cannot_be_recorded_is_served_without(caplog: pytest.LogCaptureFixture) -> None:
    engine = Graphed("llava")
    engine.recorder.broken = True
    try:
        await engine.check("llava", opening("llava", 1))
        await engine.check("llava", opening("llava", 3))
        assert engine.recorder.replays == 0
        assert sum("without graphs" in record.message for record in caplog.records) == 1
    finally:
        await engine.aclose()


async def test_recordings_of_a_model_that_moved_are_dropped() -> None:
    engine = Graphed("llama")
    try:
        await engine.check("llama", user("before"))
        before = dict(engine.graphs._graphs)
        for parameter in engine._loaded.model.parameters():
            parameter.data = parameter.data.clone()
        await engine.check("llama", user("after"))
        assert engine.graphs._graphs
        assert not set(map(id, before.values())) & set(map(id, engine.graphs._graphs.values()))
    finally:
        await engine.aclose()


async def test_all_sizes_are_recorded_ahead_as_far_as_time_allows() -> None:
    engine = Graphed("llama")
    try:
        assert engine.graphs.record_all(-1.0) == 0
        assert engine.graphs.record_all(60.0) == len(batch_sizes(8))
        recorded = len(engine.recorder.tapes)
        await engine.check("llama", user("short"))
        assert len(engine.recorder.tapes) == recorded
    finally:
        await engine.aclose()


def test_sizes_double_up_to_the_most_that_run_at_once() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(48) == (1, 2, 4, 8, 16, 32, 48)
    assert batch_sizes(64) == (1, 2, 4, 8, 16, 32, 64)
