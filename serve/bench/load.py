"""Puts a load on a target: people who chat side by side, or chats that begin at random moments."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import cast

from llava_core.errors import LlavaError
from llava_core.types import Chunk, Message, Request, assistant
from serve.bench.plan import ChatScript, LoadPlan, write_script
from serve.bench.records import Answer
from serve.bench.target import Target

log = logging.getLogger(__name__)

Clock = Callable[[], float]
WARM_UP_CHATS = 1 << 40
"""Numbers of warm-up chats begin here, so that their pictures and words are no measured chat's."""
_MOST_SCRIPTS_AHEAD = 64


async def run_load(
    plan: LoadPlan,
    target: Target,
    *,
    told: Callable[[Answer], None] = lambda answer: None,
    clock: Clock = time.perf_counter,
) -> list[Answer]:
    """Every answer of a load in the order they ended; `told` hears of each at once.

    Pictures are drawn before the clock starts. A chat ends at its first error, since what follows would be another
    chat; the next one begins with its turn.
    """
    if plan.warm_up:
        await asyncio.gather(
            *(
                _chat(plan, write_script(plan, WARM_UP_CHATS + number), target, 0.0, clock)
                for number in range(plan.warm_up)
            )
        )
    ready = [write_script(plan, number) for number in range(min(_expected(plan), _MOST_SCRIPTS_AHEAD))]
    numbers = iter(range(1 << 40))
    answers: list[Answer] = []
    started = clock()

    def script() -> ChatScript:
        number = next(numbers)
        return ready[number] if number < len(ready) else write_script(plan, number)

    def over() -> bool:
        return plan.duration_s is not None and clock() - started >= plan.duration_s

    async def chat(script: ChatScript) -> None:
        async with aclosing(_answers(plan, script, target, started, clock)) as given:
            async for answer in given:
                answers.append(answer)
                told(answer)

    if plan.request_rate is None:

        async def person() -> None:
            left = plan.rounds
            while not over() and (left > 0 or plan.duration_s is not None):
                left -= 1
                await chat(script())

        await asyncio.gather(*(person() for _ in range(plan.users)))
        return answers

    arrivals = _arrivals(plan)
    async with asyncio.TaskGroup() as group:
        left = plan.chats
        while left > 0 or plan.duration_s is not None:
            left -= 1
            at = next(arrivals)
            if plan.duration_s is not None and at >= plan.duration_s:
                break
            await asyncio.sleep(max(0.0, started + at - clock()))
            group.create_task(chat(script()))
    return answers


def _expected(plan: LoadPlan) -> int:
    if plan.duration_s is None:
        return plan.chats
    return plan.users if plan.request_rate is None else round(plan.duration_s * plan.request_rate / plan.turns) + 1


def _arrivals(plan: LoadPlan) -> Iterator[float]:
    """Seconds at which chats begin: a Poisson process, with `turns` requests to each chat."""
    source = random.Random(f"{plan.seed}/arrivals")
    rate = cast(float, plan.request_rate) / plan.turns
    at = 0.0
    while True:
        yield at
        at += source.expovariate(rate)


async def _chat(plan: LoadPlan, script: ChatScript, target: Target, started: float, clock: Clock) -> None:
    async with aclosing(_answers(plan, script, target, started, clock)) as given:
        async for _ in given:
            pass


async def _answers(
    plan: LoadPlan, script: ChatScript, target: Target, started: float, clock: Clock
) -> AsyncGenerator[Answer]:
    """One chat, turn by turn; each answer goes back into what is sent next."""
    messages = script.opening()
    for turn, question in enumerate(script.questions, 1):
        if turn > 1 and plan.think_time_s:
            await asyncio.sleep(plan.think_time_s)
        messages.append(Message("user", question))
        request = Request(target.model, tuple(messages), plan.sampling, owner=script.owner)
        answer = await measure(target, request, chat=script.number, turn=turn, started=started, clock=clock)
        yield answer
        if answer.error is not None:
            return
        messages.append(assistant(answer.text))


async def measure(
    target: Target, request: Request, *, chat: int = 0, turn: int = 1, started: float = 0.0, clock: Clock
) -> Answer:
    """Send one request and time what comes back; an error is part of the answer."""
    begin = clock()
    times: list[float] = []
    pieces: list[str] = []
    last = Chunk()
    error: LlavaError | None = None
    # An engine's own iterator is a generator too, though its interface does not promise it.
    async with aclosing(cast("AsyncGenerator[Chunk]", target.stream(request))) as chunks:
        try:
            async for last in cast("AsyncIterator[Chunk]", chunks):
                if last.text:
                    times.append(clock())
                    pieces.append(last.text)
        except LlavaError as raised:
            error = raised
    end = clock()
    usage = last.usage
    return Answer(
        chat=chat,
        turn=turn,
        started_s=begin - started,
        total_s=end - begin,
        first_s=times[0] - begin if times else None,
        gaps_s=tuple(later - earlier for earlier, later in itertools.pairwise(times)),
        prompt_tokens=usage.prompt_tokens if usage else 0,
        cached_tokens=usage.cached_tokens if usage else 0,
        image_tokens=usage.image_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else len(pieces),
        counted=usage is not None,
        error=None if error is None else error.code,
        message="" if error is None else error.message,
        text="".join(pieces),
    )
