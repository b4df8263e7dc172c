"""What only the echo engine promises: a reply that tells the whole context, its own pace, and failing on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from llava_core.config import EngineLimits
from llava_core.engines.echo import EchoEngine, split_words
from llava_core.errors import EngineFailure, OutOfMemory, Overloaded
from llava_core.types import assistant, system, user
from tests.engines.contenders import ask, assert_idle, picture, request, start

Make = Callable[..., EchoEngine]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[EchoEngine] = []

    def make(**options: object) -> EchoEngine:
        made.append(EchoEngine("echo", **{"delay_s": 0.0} | options))  # pyright: ignore[reportArgumentType]
        return made[-1]

    yield make
    for engine in made:
        await engine.aclose()


async def test_the_reply_names_everything_it_received(make: Make) -> None:
    answer = await ask(
        make(),
        system("Be brief."),
        user(picture(size=(64, 48)), "What is this?"),
        assistant("A red field."),
        user("And these two?", picture(size=(30, 20)), picture(size=(10, 90))),
        max_tokens=200,
    )
    assert answer.text == (
        "I received 3 turns and 3 images.\n\n"
        "1. user: 1 image (64x48), 3 words\n"
        "2. assistant: no image, 3 words\n"
        "3. user: 2 images (30x20, 10x90), 3 words\n\n"
        "System prompt: Be brief.\n\n"
        "You said: And these two?"
    )
    assert answer.finish == "stop"
    assert answer.usage.completion_tokens == len(split_words(answer.text))
    assert answer.usage.prompt_tokens == 2 + 3 + 3 + 3 + 3 * 16
    assert answer.usage.image_tokens == 3 * 16


async def test_time_passes_before_the_first_word_and_between_words(make: Make) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    answer = await ask(make(delay_s=0.5, first_token_s=3.0, sleep=sleep), "Hi", max_tokens=4)
    assert slept == [3.0, 0.5, 0.5, 0.5]
    assert answer.finish == "length"


async def test_it_fails_when_and_as_told_and_frees_its_slot(make: Make) -> None:
    for failure in (EngineFailure, OutOfMemory):
        engine = make(fail_after=3, failure=failure)
        wanted = request("Hi")
        stream = engine.generate(wanted)
        words = [(await anext(stream)).text for _ in range(3)]
        assert words == ["I ", "received ", "1 "]
        with pytest.raises(failure) as caught:
            await anext(stream)
        assert caught.value.request_id == wanted.id
        await assert_idle(engine)


async def test_the_wait_it_suggests_grows_with_the_answers_before(make: Make) -> None:
    now = 0.0
    engine = make(limits=EngineLimits(max_running=1, max_waiting=0), clock=lambda: now)
    stream = start(engine, "Hi")
    await anext(stream)
    now = 30.0
    await stream.aclose()
    stream = start(engine, "Hi")
    await anext(stream)
    with pytest.raises(Overloaded, match="try again in 30 s") as caught:
        await ask(engine, "Hi")
    assert caught.value.retry_after == 30
    await stream.aclose()


async def test_it_says_that_it_is_no_model(make: Make) -> None:
    assert "no model" in make().info.note
