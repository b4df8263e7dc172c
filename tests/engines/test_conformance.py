"""What every engine promises, tried on every engine there is."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import psutil
import pytest

from llava_core.config import EngineLimits, ImageLimits
from llava_core.engines.base import Engine
from llava_core.engines.load import EngineOptions, load_engine
from llava_core.errors import BadImage, BadRequest, ContextOverflow, LlavaError, Overloaded
from llava_core.images import to_data_url
from llava_core.types import Grammar, ImagePart, Message, assistant, system, user
from tests.engines.contenders import (
    CONTENDERS,
    Contender,
    Workshop,
    ask,
    assert_idle,
    assert_usable,
    babel_folder,
    picture,
    read,
    request,
    start,
    texts,
    until,
)

QUESTION = "What is in this picture?"
LONG = {"max_tokens": 2000, "ignore_eos": True}


@pytest.fixture(params=CONTENDERS, ids=lambda contender: contender.name)
async def workshop(request: pytest.FixtureRequest) -> AsyncIterator[Workshop]:
    contender: Contender = request.param
    workshop = Workshop(contender)
    yield workshop
    await workshop.close()


@pytest.fixture
async def engine(workshop: Workshop) -> Engine:
    return await workshop.engine()


# ---- the stream


async def test_an_answer_is_text_then_one_finish_with_usage(engine: Engine) -> None:
    answer = await ask(engine, user(picture(), QUESTION))
    assert answer.text
    assert len(answer.chunks) > 2, "it streams"
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 24
    assert 0 < usage.image_tokens < usage.prompt_tokens
    assert 0 <= usage.cached_tokens < usage.prompt_tokens


async def test_the_engine_says_what_it_is(engine: Engine) -> None:
    assert engine.info.name
    assert engine.info.engine in ("echo", "transformers")
    assert engine.info.context_length >= 2048
    assert engine.info.accepts_images
    assert engine.info.note
    status = engine.status()
    assert (status.running, status.waiting) == (0, 0)
    assert status.capacity >= 1


async def test_temperature_zero_always_says_the_same(engine: Engine) -> None:
    answers = [await ask(engine, user(picture(), QUESTION)) for _ in range(3)]
    assert len(set(texts(answers))) == 1


async def test_the_same_seed_says_the_same_and_another_seed_something_else(engine: Engine, workshop: Workshop) -> None:
    async def drawn(seed: int) -> str:
        return (await ask(engine, user(picture(), QUESTION), temperature=1.0, seed=seed)).text

    first, again, *others = [await drawn(seed) for seed in (7, 7, 8, 9, 10)]
    assert first == again
    if workshop.contender.samples:
        assert len({first, *others}) > 1


async def test_neighbours_do_not_change_an_answer(engine: Engine) -> None:
    wanted = [
        request("Hello", max_tokens=9),
        request(user(picture("green"), QUESTION)),
        request(user(picture("blue", (90, 30)), QUESTION), max_tokens=17),
        request(system("Be brief."), user("One, two, three"), assistant("four"), user("and?", picture())),
        request("Count to a hundred, please, and leave none out.", max_tokens=40),
        request(user(picture("green"), picture("red"), "Compare them."), max_tokens=5),
    ]
    alone = [await read(engine, one) for one in wanted]
    for crowd in (2, 6):
        together = await asyncio.gather(*(read(engine, one) for one in wanted[:crowd]))
        assert texts(together) == texts(alone[:crowd])
    doubled = await asyncio.gather(*(read(engine, one) for one in wanted * 3))
    assert texts(doubled) == texts(alone) * 3
    assert [answer.finish for answer in doubled] == [answer.finish for answer in alone] * 3


async def test_a_reader_who_is_late_misses_nothing(engine: Engine) -> None:
    prompt = user(picture(), QUESTION)
    whole = (await ask(engine, prompt)).text
    stream = start(engine, prompt)
    text = (await anext(stream)).text
    for _ in range(200):
        await asyncio.sleep(0)
    async for chunk in stream:
        text += chunk.text
    assert text == whole


# ---- the context


async def test_pictures_in_every_turn_count_and_their_order_matters(engine: Engine) -> None:
    red, blue = picture("red"), picture("blue", (64, 40))
    one = await ask(engine, user(red, QUESTION), max_tokens=64)
    two = await ask(engine, user(red, "First"), assistant("Seen."), user(blue, QUESTION), max_tokens=64)
    swapped = await ask(engine, user(blue, "First"), assistant("Seen."), user(red, QUESTION), max_tokens=64)
    pair = await ask(engine, user(red, red, QUESTION))
    assert pair.usage.image_tokens == 2 * one.usage.image_tokens
    assert two.usage.image_tokens > one.usage.image_tokens
    assert two.usage.image_tokens == swapped.usage.image_tokens
    assert two.text != swapped.text
    none = await ask(engine, QUESTION)
    assert none.usage.image_tokens == 0


async def test_earlier_turns_and_the_system_prompt_are_read(engine: Engine) -> None:
    short = await ask(engine, "And now?", max_tokens=64)
    longer = await ask(engine, "A red door.", assistant("Yes."), user("And now?"), max_tokens=64)
    told = await ask(engine, system("Answer like a pirate."), user("And now?"), max_tokens=64)
    assert len({short.text, longer.text, told.text}) == 3
    assert short.usage.prompt_tokens < told.usage.prompt_tokens
    assert short.usage.prompt_tokens < longer.usage.prompt_tokens


async def test_a_following_turn_computes_only_what_is_new(engine: Engine) -> None:
    first = user(picture(), QUESTION)
    opening = await ask(engine, first, owner="a")
    following = (first, assistant(opening.text), user("What else?"))
    later = await ask(engine, *following, owner="a")
    assert later.usage.cached_tokens > opening.usage.image_tokens
    stranger = await ask(engine, *following, owner="b")
    assert stranger.usage.cached_tokens == 0, "one caller's chat is no business of another"
    assert stranger.text == later.text


async def test_a_begun_answer_is_continued_as_if_it_had_not_stopped(engine: Engine) -> None:
    prompt = user(picture(), QUESTION)
    whole = await ask(engine, prompt, max_tokens=20, ignore_eos=True)
    begun = "".join(chunk.text for chunk in whole.chunks[:6])
    # Of a reader that was late a chunk holds several tokens.
    left = whole.usage.completion_tokens - sum(max(1, len(chunk.token_ids)) for chunk in whole.chunks[:6])
    rest = await ask(engine, prompt, assistant(begun), continue_final=True, max_tokens=left, ignore_eos=True)
    assert begun + rest.text == whole.text


@pytest.mark.parametrize("pictures", [0, 1, 2])
async def test_text_that_looks_special_is_text(engine: Engine, pictures: int) -> None:
    odd = "<image> </s> [INST] <|im_start|>user USER: ASSISTANT: <s> <pad> ### <unk> <|image_pad|> {{ 7 * 7 }} \x00"
    shown = [picture()] * pictures
    plain = await ask(engine, user(*shown, "words"))
    for parts in ((*shown, odd), (odd, *shown)):
        answer = await ask(engine, user(*parts), assistant(odd), user(odd))
        assert answer.usage.image_tokens == plain.usage.image_tokens
        assert answer.usage.prompt_tokens > plain.usage.prompt_tokens
        assert answer.text
    await assert_usable(engine)


# ---- where it ends


async def test_the_token_limit_ends_an_answer_with_length(engine: Engine) -> None:
    for limit in (1, 2, 7):
        answer = await ask(engine, user(picture(), QUESTION), max_tokens=limit, ignore_eos=True)
        assert answer.finish == "length"
        assert answer.usage.completion_tokens == limit


async def test_a_stop_string_ends_an_answer_before_it(engine: Engine) -> None:
    whole = (await ask(engine, "Tell me more", max_tokens=32)).text
    middle = len(whole) // 2
    # Across a space, so that it lies in two chunks; inside a word; and where the answer starts.
    space = whole.index(" ", middle)
    for stop in (whole[space - 2 : space + 3], whole[middle : middle + 1], whole[:3]):
        answer = await ask(engine, "Tell me more", max_tokens=32, stop=("never said", stop))
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish == "stop"
    await assert_usable(engine)


async def test_half_a_stop_string_is_held_back_until_it_is_none(engine: Engine) -> None:
    whole = await ask(engine, "Tell me more", max_tokens=32)
    middle = len(whole.text) // 2
    for stop in (whole.text[middle : middle + 6] + "\u2603", whole.text[-4:] + "\u2603"):
        answer = await ask(engine, "Tell me more", max_tokens=32, stop=(stop,))
        assert answer.text == whole.text
        assert answer.finish == whole.finish


async def test_no_chunk_holds_half_a_character(engine: Engine) -> None:
    for limit in range(1, 12):
        answer = await ask(engine, user("Grüße 🙂 東京 👩‍👩‍👧"), max_tokens=limit)
        assert all("\ufffd" not in chunk.text for chunk in answer.chunks)


async def test_a_character_of_several_tokens_comes_whole_or_not_at_all() -> None:
    options = EngineOptions(model_path=str(babel_folder()), device="cpu", dtype="float32")
    engine = load_engine("transformers", options)
    said = "aü🙂東ж " * 3
    try:
        for limit in range(1, 28):
            answer = await ask(engine, "Speak", max_tokens=limit)
            assert answer.text == said.encode()[:limit].decode(errors="ignore")
            assert answer.usage.completion_tokens == limit
        stopped = await ask(engine, "Speak", max_tokens=60, stop=("東",))
        assert (stopped.text, stopped.finish) == ("aü🙂", "stop")
    finally:
        await engine.aclose()


# ---- leaving


async def test_a_reader_who_leaves_frees_the_slot(workshop: Workshop) -> None:
    engine = await workshop.engine(limits=EngineLimits(max_running=1, max_waiting=2))
    for _ in range(3):
        stream = start(engine, user(picture(), QUESTION), **LONG)
        await anext(stream)
        assert engine.status().running == 1
        await stream.aclose()
        await assert_idle(engine)
    await assert_usable(engine)


async def test_a_stream_that_was_never_started_holds_nothing(workshop: Workshop) -> None:
    engine = await workshop.engine(limits=EngineLimits(max_running=1, max_waiting=1))
    for _ in range(5):
        stream = start(engine, QUESTION, **LONG)
        await stream.aclose()
        start(engine, QUESTION, **LONG)  # nor one that is simply dropped
    assert (engine.status().running, engine.status().waiting) == (0, 0)
    await assert_usable(engine)


async def test_a_reader_cancelled_in_the_queue_or_at_work_frees_the_slot(workshop: Workshop) -> None:
    engine = await workshop.engine(limits=EngineLimits(max_running=1, max_waiting=4))
    tasks = [asyncio.create_task(ask(engine, user(picture(), QUESTION), **LONG)) for _ in range(3)]
    await until(lambda: engine.status().running == 1 and engine.status().waiting == 2)
    for task in (tasks[1], tasks[0], tasks[2]):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await assert_idle(engine)
    await assert_usable(engine)


async def test_those_who_stay_are_not_disturbed_by_those_who_leave(engine: Engine) -> None:
    alone = await ask(engine, user(picture(), QUESTION), max_tokens=40)
    staying = asyncio.create_task(ask(engine, user(picture(), QUESTION), max_tokens=40))
    for turn in range(6):
        stream = start(engine, f"Number {turn}", **LONG)
        await anext(stream)
        await stream.aclose()
    assert (await staying).text == alone.text
    await assert_idle(engine)


# ---- what is refused


async def refused(engine: Engine, error: type[LlavaError], *messages: Message | str, **options: Any) -> LlavaError:
    """The error of a request that must fail before its first chunk."""
    with pytest.raises(error) as caught:
        await anext(start(engine, *messages, **options))
    assert type(caught.value) is error
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,AAAA",
        "data:image/png;base64,@@",
        to_data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "https://pictures.example/cat.png",
        "file:///etc/passwd",
        "",
    ],
)
async def test_a_bad_picture_is_refused_before_the_first_chunk(engine: Engine, url: str) -> None:
    error = await refused(engine, BadImage, user(picture(), "Look"), assistant("Yes"), user(ImagePart(url), QUESTION))
    assert error.message.startswith("picture 2 of 2: ")
    await assert_usable(engine)


async def test_picture_limits_are_kept(workshop: Workshop) -> None:
    engine = await workshop.engine(images=ImageLimits(max_images=2, max_pixels=10_000))
    assert "limit is 2" in (await refused(engine, BadImage, user(*[picture()] * 3, QUESTION))).message
    assert "megapixels" in (await refused(engine, BadImage, user(picture(size=(200, 100)), QUESTION))).message
    await assert_usable(engine)


async def test_a_chat_longer_than_the_context_is_refused(engine: Engine) -> None:
    error = await refused(engine, ContextOverflow, "word " * (engine.info.context_length + 1))
    assert str(engine.info.context_length) in error.message
    await assert_usable(engine)


async def test_an_answer_without_a_limit_ends_with_the_context(workshop: Workshop) -> None:
    engine = await workshop.engine(limits=EngineLimits(max_answer_tokens=50))
    assert (await ask(engine, QUESTION, max_tokens=None, ignore_eos=True)).usage.completion_tokens <= 50


async def test_an_answer_takes_no_more_than_the_context_leaves(engine: Engine) -> None:
    context = engine.info.context_length
    short, longer = [(await ask(engine, "word " * count, max_tokens=1)).usage.prompt_tokens for count in (10, 110)]
    step = (longer - short) / 100
    filling = "word " * int(10 + (context - 40 - short) / step)
    for wanted in (context, 1 << 20):
        answer = await ask(engine, filling, max_tokens=wanted, ignore_eos=True)
        assert answer.finish == "length"
        assert answer.usage.prompt_tokens + answer.usage.completion_tokens == context


@pytest.mark.parametrize(
    ("grammar", "fits"),
    [
        (Grammar("regex", r"(yes|no), \d{2}"), lambda text: re.fullmatch(r"(yes|no), \d{2}", text)),
        (Grammar("json_schema", '{"enum":["grün 🙂",7]}'), lambda text: json.loads(text) in ("grün 🙂", 7)),
    ],
    ids=["regex", "schema"],
)
async def test_an_answer_is_held_to_a_form_or_the_engine_says_that_it_cannot(
    engine: Engine, grammar: Grammar, fits: Callable[[str], bool]
) -> None:
    if engine.info.engine != "transformers":
        assert "schema or pattern" in (await refused(engine, BadRequest, QUESTION, grammar=grammar)).message
    else:
        pytest.importorskip("xgrammar")
        answer = await ask(engine, user(picture(), QUESTION), max_tokens=64, grammar=grammar)
        assert answer.finish == "stop"
        assert fits(answer.text)
    await assert_usable(engine)


async def test_more_than_the_queue_holds_is_refused_and_told_when_to_return(workshop: Workshop) -> None:
    engine = await workshop.engine(limits=EngineLimits(max_running=1, max_waiting=1))
    first = start(engine, QUESTION, **LONG)
    await anext(first)
    second = asyncio.create_task(ask(engine, QUESTION))
    await until(lambda: engine.status().waiting == 1)
    error = await refused(engine, Overloaded, QUESTION)
    assert error.retry_after is not None
    assert error.retry_after > 0
    await first.aclose()
    assert (await second).text
    await assert_usable(engine)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (3, 3), (1, 99), (99, 1)], ids=str)
async def test_the_smallest_and_narrowest_pictures_are_seen(engine: Engine, size: tuple[int, int]) -> None:
    answer = await ask(engine, user(picture(size=size), QUESTION), max_tokens=3)
    assert answer.usage.image_tokens > 0
    assert answer.usage.completion_tokens == 3


async def test_all_places_are_given_out_though_every_picture_is_still_to_be_decoded(workshop: Workshop) -> None:
    engine = await workshop.engine(limits=EngineLimits(max_running=2, max_waiting=2))
    answers = await asyncio.gather(*(ask(engine, user(picture(), QUESTION), max_tokens=3) for _ in range(4)))
    assert all(answer.text for answer in answers)
    await assert_idle(engine)


async def test_a_broken_picture_is_told_of_while_others_have_all_places(workshop: Workshop) -> None:
    engine = await workshop.engine(limits=EngineLimits(max_running=1, max_waiting=1))
    first = start(engine, QUESTION, **LONG)
    await anext(first)
    await refused(engine, BadImage, user(ImagePart("data:image/png;base64,AAAA"), QUESTION))
    assert engine.status().running == 1
    await first.aclose()
    await assert_usable(engine)


async def test_waiting_has_an_end(workshop: Workshop) -> None:
    engine = await workshop.engine(limits=EngineLimits(max_running=1, max_waiting=4, max_wait_s=0.5))
    first = start(engine, QUESTION, **LONG)
    await anext(first)
    error = await refused(engine, Overloaded, QUESTION)
    assert error.retry_after
    await first.aclose()
    await assert_idle(engine)
    await assert_usable(engine)


async def test_a_stopped_engine_leaves_nothing_behind_and_takes_no_more(workshop: Workshop) -> None:
    before = set(psutil.Process().children())
    engine = await workshop.engine()
    await assert_usable(engine)
    assert set(psutil.Process().children()) - before, "pictures are decoded in a process of their own"
    await engine.aclose()
    await engine.aclose()
    assert set(psutil.Process().children()) <= before
    with pytest.raises(LlavaError):
        await ask(engine, QUESTION)
