"""Every engine the conformance suite runs against, made fresh for a test, and what asks and checks them."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from llava_core.config import EngineLimits, ImageLimits
from llava_core.engines.base import Engine
from llava_core.engines.echo import EchoEngine
from llava_core.engines.load import EngineOptions, load_engine
from llava_core.images import to_data_url
from llava_core.types import Chunk, FinishReason, ImagePart, Message, Request, Sampling, Usage, user

Make = Callable[[EngineLimits, ImageLimits], Engine]


@dataclass(frozen=True)
class Contender:
    """`samples` says that temperature and seed matter, `cheap` that waiting is all its work."""

    name: str
    make: Make
    samples: bool = True


@dataclass(frozen=True)
class Answer:
    """A whole stream, checked for its form."""

    chunks: tuple[Chunk, ...]
    text: str
    finish: FinishReason
    usage: Usage


def _echo(limits: EngineLimits, images: ImageLimits) -> Engine:
    return EchoEngine("echo", limits=limits, images=images, delay_s=0.001)


def _transformers(family: str, limits: EngineLimits, images: ImageLimits) -> Engine:
    path = str(tiny_folder(family))
    options = EngineOptions(model_path=path, device="cpu", dtype="float32", limits=limits, images=images)
    return load_engine("transformers", options)


@functools.cache
def tiny_folder(family: str) -> Path:
    from llava_core.checkpoints.tiny import build_tiny

    return build_tiny(family, Path(tempfile.mkdtemp(prefix="conformance-")) / family)


CONTENDERS = (
    Contender("echo", _echo, samples=False),
    Contender("transformers", functools.partial(_transformers, "llava")),
    Contender("transformers-qwen", functools.partial(_transformers, "qwen2_5_vl")),
)


@functools.cache
def babel_folder() -> Path:
    """A checkpoint that says "aü🙂東ж " for ever, one byte a token beyond ASCII, whatever it is asked.

    Its layers add nothing, every token of the circle has a coordinate of its own, and the output matrix maps each
    coordinate to the token that comes next.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from llava_core.checkpoints.tiny import build_tiny

    folder = build_tiny("llava", Path(tempfile.mkdtemp(prefix="babel-")) / "babel")
    vocabulary: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    circle = [vocabulary[_byte_symbol(byte)] for byte in "aü🙂東ж ".encode()]
    assert len(set(circle)) == len(circle)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "mlp.down_proj.weight")) and name.startswith("language_model"):
            weight.zero_()
    embedding, output = weights["language_model.model.embed_tokens.weight"], weights["language_model.lm_head.weight"]
    embedding.zero_()
    embedding[:, 0] = 1
    output.zero_()
    output[circle[0], 0] = 10
    for place, token in enumerate(circle):
        embedding[token] = torch.nn.functional.one_hot(torch.tensor(place + 1), embedding.shape[1])
        output[circle[(place + 1) % len(circle)], place + 1] = 10
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _byte_symbol(byte: int) -> str:
    """The printable letter that byte-level BPE writes for a byte."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()[byte]


def picture(colour: str | tuple[int, int, int] = "red", size: tuple[int, int] = (48, 40)) -> ImagePart:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return ImagePart(to_data_url(file.getvalue()))


def request(*messages: Message | str, owner: str = "", continue_final: bool = False, **sampling: Any) -> Request:
    """Greedy and short unless told otherwise; a bare string is a user's message."""
    turns = tuple(user(message) if isinstance(message, str) else message for message in messages)
    drawn = Sampling(**{"temperature": 0.0, "max_tokens": 24} | sampling)
    return Request("any", turns, drawn, owner=owner, continue_final=continue_final)


async def ask(engine: Engine, *messages: Message | str, **options: Any) -> Answer:
    return await read(engine, request(*messages, **options))


async def read(engine: Engine, wanted: Request) -> Answer:
    """The whole answer; fails unless it is text chunks, then exactly one that finishes and carries the usage."""
    chunks: list[Chunk] = []
    async with asyncio.timeout(60):
        async for chunk in engine.generate(wanted):
            assert not chunks or chunks[-1].finish_reason is None, "a chunk after the finish"
            assert (chunk.usage is None) == (chunk.finish_reason is None), "usage belongs to the finish"
            chunks.append(chunk)
    last = chunks[-1]
    assert last.finish_reason is not None, "the stream ended without a finish"
    assert last.usage is not None
    return Answer(tuple(chunks), "".join(chunk.text for chunk in chunks), last.finish_reason, last.usage)


def start(engine: Engine, *messages: Message | str, **options: Any) -> AsyncGenerator[Chunk]:
    """A stream to read from and to close by hand."""
    stream = engine.generate(request(*messages, **options))
    assert isinstance(stream, AsyncGenerator), "what an engine returns can be closed"
    return stream


async def until(true: Callable[[], bool]) -> None:
    """Wait for what happens a moment later on another thread; fails after a time nobody should need."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110  (engines report their status, they do not announce it)
            await asyncio.sleep(0.002)


async def assert_idle(engine: Engine) -> None:
    await until(lambda: engine.status().running == 0 and engine.status().waiting == 0)


async def assert_usable(engine: Engine) -> None:
    assert (await ask(engine, user(picture(), "Still there?"), max_tokens=3)).usage.completion_tokens == 3
    await assert_idle(engine)


@dataclass
class Workshop:
    """Makes engines of one kind for a test and closes them after it."""

    contender: Contender
    made: list[Engine] = field(default_factory=list)

    async def engine(self, *, limits: EngineLimits | None = None, images: ImageLimits | None = None) -> Engine:
        made = self.contender.make(limits or EngineLimits(), images or ImageLimits())
        self.made.append(made)
        return made

    async def close(self) -> None:
        for engine in self.made:
            await engine.aclose()


def texts(answers: Sequence[Answer]) -> list[str]:
    return [answer.text for answer in answers]
