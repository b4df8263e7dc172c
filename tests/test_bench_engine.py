"""The baseline answers as `generate` does, and the engine is measured beside it; on a tiny checkpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from llava_core.checkpoints.load import load_checkpoint
from llava_core.checkpoints.tiny import build_tiny
from llava_core.config import BatchLimits
from llava_core.engines.load import EngineOptions, load_engine
from llava_core.errors import ContextOverflow
from llava_core.types import Chunk, ImagePart, Request, Sampling, user
from serve.bench import geometry
from serve.bench.bandwidth import measure_limits, weigh
from serve.bench.engine import GROWTH, ONE_STREAM, EnginePlan, EngineReport, bench_engine
from serve.bench.generate import GenerateEngine
from serve.bench.machine import this_machine
from serve.bench.plan import draw_picture
from serve.bench.report import Head, read_json, write_json

PICTURE = ImagePart(draw_picture((80, 60), "a"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("llava", tmp_path_factory.mktemp("tiny") / "llava", seed=5)


@pytest.fixture
async def baseline(tiny: Path) -> AsyncIterator[GenerateEngine]:
    engine = GenerateEngine(load_checkpoint(tiny, device="cpu", dtype="float32"))
    yield engine
    await engine.aclose()


def ask(*parts: str | ImagePart, **sampling: Any) -> Request:
    return Request("llava", (user(*parts),), Sampling(**{"temperature": 0.0, "max_tokens": 12, **sampling}))


async def answer(chunks: AsyncIterator[Chunk]) -> tuple[str, Chunk]:
    given = [chunk async for chunk in chunks]
    return "".join(chunk.text for chunk in given), given[-1]


async def test_the_baseline_says_what_our_engine_says(baseline: GenerateEngine, tiny: Path) -> None:
    engine = load_engine("transformers", EngineOptions(model_path=str(tiny), device="cpu", dtype="float32"))
    try:
        for request in (ask("What is this?"), ask(PICTURE, "What is this?", ignore_eos=True)):
            ours, end = await answer(engine.generate(request))
            theirs, their_end = await answer(baseline.generate(request))
            assert theirs == ours
            assert their_end.finish_reason == end.finish_reason
            assert end.usage is not None
            assert their_end.usage is not None
            assert their_end.usage.completion_tokens == end.usage.completion_tokens
            assert their_end.usage.image_tokens == end.usage.image_tokens == 16 * len(request.images)
    finally:
        await engine.aclose()


async def test_the_baseline_computes_everything_again_on_every_turn(baseline: GenerateEngine) -> None:
    for _ in range(2):
        _, end = await answer(baseline.generate(ask(PICTURE, "What is this?")))
        assert end.usage is not None
        assert end.usage.cached_tokens == 0


async def test_the_baseline_streams_and_stops_at_stop_strings(baseline: GenerateEngine) -> None:
    whole, _ = await answer(baseline.generate(ask("Tell me.", ignore_eos=True)))
    word = whole.split()[3]
    request = ask("Tell me.", ignore_eos=True, stop=(word,))
    pieces = [chunk.text async for chunk in baseline.generate(request)]
    assert "".join(pieces) == whole[: whole.index(word)]
    assert len(pieces) > 2


async def test_the_baseline_takes_one_request_at_a_time_and_the_next_when_a_reader_leaves(
    baseline: GenerateEngine,
) -> None:
    long = ask("Tell me.", max_tokens=2000, ignore_eos=True)
    async with aclosing(cast(Any, baseline.generate(long))) as first:
        await anext(first)
        second = asyncio.create_task(answer(baseline.generate(ask("Hi", max_tokens=2, ignore_eos=True))))
        async with asyncio.timeout(60):
            while (baseline.status().running, baseline.status().waiting) != (1, 1):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    _, end = await asyncio.wait_for(second, 60)
    assert end.finish_reason == "length"
    assert baseline.status().running == 0


async def test_the_baseline_refuses_what_does_not_fit(baseline: GenerateEngine) -> None:
    with pytest.raises(ContextOverflow, match="do not fit"):
        await answer(baseline.generate(ask("Hi", max_tokens=5000)))


def test_the_weights_read_for_a_token_leave_out_the_tower_and_the_embedding_table(tiny: Path) -> None:
    model: Any = load_checkpoint(tiny, device="cpu", dtype="float32").model
    facts = weigh(model)
    inside = sum(p.numel() for p in model.get_decoder().layers.parameters()) + model.get_decoder().norm.weight.numel()
    assert facts.bytes == 4 * (inside + model.lm_head.weight.numel())
    assert facts.kv_bytes == 2 * 2 * 2 * 16 * 4
    limits = measure_limits(model, buffer_bytes=1 << 20)
    assert limits.read_bytes_per_s > 0
    assert limits.pass_s > 0


async def test_the_engine_is_measured_beside_generate_and_the_machine(tiny: Path, tmp_path: Path) -> None:
    plan = EnginePlan(rounds=1, users=2, turns=2, long_turns=3, max_tokens=4, prefill_words=40, image_size=(40, 40))
    told: list[str] = []
    report = await bench_engine(
        EngineOptions(model_path=str(tiny), device="cpu", dtype="float32", batch=BatchLimits(threads=3)),
        plan,
        lambda threads, device: Head("test", this_machine(torch_threads=threads, device=device), "today"),
        told=told.append,
    )
    names = {line.name for line in report.lines}
    assert {ONE_STREAM, GROWTH, "prefill, tokens/s", "2 users: tokens/s", "first token alone, turn 3, s"} <= names
    assert report.limit.share == pytest.approx(report.limit.reached / report.limit.limit_tokens_per_s)
    assert report.head.machine.torch_threads == 3
    assert any("2 users" in what for what in told)
    write_json(tmp_path / "e.json", report)
    assert read_json(tmp_path / "e.json", EngineReport) == report


def test_the_measuring_checkpoint_has_the_shape_and_names_of_llava_1_5(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The real widths take half a minute; names, files and token counts do not depend on them.
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
    monkeypatch.setattr(geometry, "_TEXT", {**geometry._TEXT, **small, "num_key_value_heads": 4, "head_dim": 16})
    monkeypatch.setattr(geometry, "_TOWER", {**geometry._TOWER, **small, "num_hidden_layers": 2})
    out = tmp_path / "llava"
    weights = geometry.build_geometry(out, dtype="bfloat16")
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    assert sum(tensor.numel() for tensor in tensors.values()) == weights
    assert {"language_model.lm_head.weight", "multi_modal_projector.linear_1.weight"} <= set(tensors)
    assert any(name.startswith("vision_tower.vision_model.encoder.layers.0.") for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    loaded = load_checkpoint(out, device="cpu", dtype="float32")
    assert "noise" in loaded.info.note
    from PIL import Image

    prompt = loaded.prompt((user(PICTURE, "Hi"),), [Image.new("RGB", (80, 60))])
    assert prompt.images[0].image.tokens == 576
