"""A worker that was left alone comes back by way of one request, however many ask the controller together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from llava_core.config import BreakerLimits
from llava_core.types import Chunk, Request
from serve.breaker import Breakers
from serve.client import Client
from serve.worker_app import create_app
from tests.faults.rig import until
from tests.serve.serving import ScriptedEngine, serving, two_words
from tests.serve.test_client import END, Listed, answer
from tests.topology import free_port

ASKERS = 8


@dataclass
class AskedTogether(Listed):
    """Answers nobody before this many have asked, as a controller does that is asked over HTTP at one time."""

    together: int = 1
    everybody: asyncio.Event = field(default_factory=asyncio.Event)
    here: int = 0

    async def pick(self, model: str, exclude: Sequence[str], request_id: str) -> str:
        chosen = await super().pick(model, exclude, request_id)
        self.here += 1
        if self.here >= self.together:
            self.everybody.set()
        await self.everybody.wait()
        return chosen


async def test_of_many_that_come_together_one_tries_a_worker_that_failed():
    go_on = asyncio.Event()

    async def held(request: Request) -> AsyncGenerator[Chunk]:
        await go_on.wait()
        async for chunk in two_words(request):
            yield chunk

    trying, good = ScriptedEngine(held), ScriptedEngine()
    port = free_port()
    failed = f"http://127.0.0.1:{port}"
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(serving(create_app(good)))
        listed = AskedTogether([failed, other])
        client = await stack.enter_async_context(
            Client("", directory=listed, breakers=BreakerLimits(pause_first_s=0, pause_most_s=0))
        )
        # Nobody listens there yet, so it is left alone, and with no pause at all may be tried again at once.
        assert (await answer(client))[-1] == END
        await stack.enter_async_context(serving(create_app(trying), port=port))
        good.asked.clear()
        listed.here, listed.together = 0, ASKERS
        listed.everybody.clear()
        asking = [asyncio.create_task(answer(client)) for _ in range(ASKERS)]
        await until(lambda: len(good.asked) + len(trying.asked) == ASKERS)
        assert (len(trying.asked), len(good.asked)) == (1, ASKERS - 1)
        go_on.set()
        assert [(await one)[-1] for one in asking] == [END] * ASKERS
        await answer(client)
        assert len(trying.asked) == 2, "it works again, and whoever comes first in the list is asked first"


def test_an_answer_that_ends_later_does_not_end_the_trial_of_another():
    now = 0.0
    circuits = Breakers(BreakerLimits(pause_first_s=1), clock=lambda: now)
    circuits.failed("a", at_once=True)
    now += 1
    with circuits.trying("a"):
        circuits.succeeded("a")  # its first token is here; the rest is still being read when the worker fails others
        circuits.failed("a", at_once=True)
        now += 2
        trial = circuits.trying("a")
        trial.__enter__()
    assert circuits.blocked() == ("a",)
    trial.__exit__(None, None, None)
    assert circuits.blocked() == ()
