"""From messages to text: the engine answers on original-format checkpoints as the original code did."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from llava_core.engines.load import EngineOptions, load_engine
from llava_core.types import Chunk, ImagePart, Message, Request, Sampling, assistant, user

ORIGINALS = Path(__file__).parent.parent / "fixtures" / "original_checkpoints"
BASES = {"llava-pretrain-vicuna-7b": "vicuna-base"}


def picture(name: str) -> ImagePart:
    data = (ORIGINALS / f"{name}.png").read_bytes()
    return ImagePart(f"data:image/png;base64,{base64.b64encode(data).decode()}")


def chat(record: dict[str, Any]) -> tuple[Message, ...]:
    """The recorded turns, with the picture itself where the record writes its mark."""
    pictures = iter(record["images"])
    messages: list[Message] = []
    for question, answer in record["turns"]:
        messages.append(
            user(*(picture(next(pictures)) if line == "<image>" else line for line in question.split("\n")))
        )
        if answer is not None:
            messages.append(assistant(answer))
    return tuple(messages)


async def answer(stream: AsyncGenerator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in stream]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ORIGINALS.glob("*/golden.json")))
async def test_all_recorded_chats_at_once_give_the_recorded_tokens(name: str) -> None:
    records = json.loads((ORIGINALS / name / "golden.json").read_text())["records"]
    base = BASES.get(name)
    engine = load_engine(
        "transformers",
        EngineOptions(
            model_path=str(ORIGINALS / name),
            model_base=str(ORIGINALS / base) if base else None,
            dtype="float32",
            conv_template=records[0]["template"],
        ),
    )
    # A log-probability per token is how an answer tells its ids.
    sampling = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=0)
    try:
        requests = [Request(name, chat(record), sampling) for record in records]
        answers = await asyncio.gather(*(answer(engine.generate(request)) for request in requests))
    finally:
        await engine.aclose()
    for record, chunks in zip(records, answers, strict=True):
        assert [entry.token_id for chunk in chunks for entry in chunk.logprobs] == record["greedy_tokens"]
        usage = chunks[-1].usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (record["prefill_length"], 24)
