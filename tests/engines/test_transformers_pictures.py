"""A picture that comes again with its chat is neither decoded nor preprocessed again."""

from __future__ import annotations

from typing import Any

import pytest
from exactness import folder, picture

from llava_core.checkpoints.load import load_checkpoint
from llava_core.config import BatchLimits, ImageLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.errors import BadImage
from llava_core.types import ImagePart, Request, Sampling, assistant, user

BROKEN = ImagePart("data:image/png;base64,aGVsbG8=")


class Counted(TransformersEngine):
    """Counts what is decoded and what is preprocessed."""

    def __init__(self, **changes: Any) -> None:
        batch = BatchLimits(kv_bytes=1 << 26, **changes)
        super().__init__(load_checkpoint(folder("llava"), device="cpu", dtype="float32"), batch=batch)
        self.decoded = self.prepared = 0
        loader: Any = self._pictures._loader
        vision: Any = self._loaded.vision  # pyright: ignore[reportAttributeAccessIssue]
        load, prepare = loader._load, vision.prepare

        async def counted_load(*args: Any) -> Any:
            self.decoded += 1
            return await load(*args)

        def counted_prepare(*args: Any, **kwargs: Any) -> Any:
            self.prepared += 1
            return prepare(*args, **kwargs)

        loader._load = counted_load
        vision.prepare = counted_prepare

    async def answer(self, *messages: Any) -> str:
        request = Request("m", messages, Sampling(temperature=0, max_tokens=8))
        return "".join([chunk.text async for chunk in self.generate(request)])


async def test_follow_ups_reuse_the_prepared_picture_and_answer_the_same() -> None:
    engine = Counted()
    try:
        opening = user(picture(1), "What is this?")
        first = await engine.answer(opening)
        chat = (opening, assistant(first), user("And?"))
        second = await engine.answer(*chat)
        assert (engine.decoded, engine.prepared) == (1, 1)
        fresh = Counted()
        assert await fresh.answer(*chat) == second
        await fresh.aclose()
    finally:
        await engine.aclose()


async def test_a_second_picture_counts_as_another_chat_of_the_first_since_it_may_be_cut_otherwise() -> None:
    engine = Counted()
    try:
        await engine.answer(user(picture(1), "one"))
        await engine.answer(user(picture(1), picture(2), "two"))
        await engine.answer(user(picture(1), picture(2), "three"))
        assert engine.decoded == 3
    finally:
        await engine.aclose()


async def test_what_is_kept_is_bounded() -> None:
    engine = Counted(prepared_bytes=0)
    try:
        for _ in range(2):
            await engine.answer(user(picture(1), "one"))
        assert engine.decoded == 2
    finally:
        await engine.aclose()


async def test_a_broken_picture_beside_a_known_one_is_named_by_its_place() -> None:
    engine = Counted()
    try:
        await engine.answer(user(picture(1), picture(2), "two"))
        with pytest.raises(BadImage, match="picture 2 of 2"):
            await engine.answer(user(picture(1), BROKEN, "two"))
        limit = ImageLimits().max_images + 1
        with pytest.raises(BadImage, match=f"{limit} pictures"):
            await engine.answer(user(*[picture(1)] * limit, "many"))
    finally:
        await engine.aclose()
