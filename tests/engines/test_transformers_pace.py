"""While answers run a step prefills as much as keeps their readers from waiting, on fast and on slow machines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from exactness import greedy, load, token_ids

from llava_core.config import BatchLimits
from llava_core.engines.transformers.engine import TransformersEngine
from llava_core.engines.transformers.pace import Pace
from llava_core.types import user


@dataclass
class Machine:
    """Steps take `fixed_s` and `token_s` more for each token that they prefill."""

    pace: Pace
    fixed_s: float
    token_s: float
    now: float = 0.0

    def step(self, tokens: int, *, waited_for: bool = True, behind: float = 0.0) -> float:
        """Its seconds; it waits for what the device is `behind`, too, unless it is not waited for itself."""
        seconds = self.fixed_s + tokens * self.token_s
        began, self.now = self.now, self.now + (seconds + behind if waited_for else 0.001)
        self.pace.took(tokens, began, self.now, waited_for=waited_for)
        return seconds


def settle(pace: Pace, *, fixed_s: float, token_s: float, steps: int = 60) -> tuple[int, float]:
    """Run steps on a machine of that speed; the last one's tokens and seconds."""
    machine = Machine(pace, fixed_s, token_s)
    tokens, seconds = 0, 0.0
    for _ in range(steps):
        machine.step(0)
        tokens = pace.room()
        seconds = machine.step(tokens)
    return tokens, seconds


def test_a_step_settles_where_it_takes_a_tenth_of_a_second() -> None:
    tokens, seconds = settle(Pace(384), fixed_s=0.007, token_s=0.0005)
    assert seconds == pytest.approx(0.1, rel=0.02)
    assert tokens == pytest.approx(186, abs=3)


def test_a_fast_machine_takes_the_whole_budget() -> None:
    assert settle(Pace(4096), fixed_s=0.01, token_s=0.00001)[0] == 4096


def test_a_slow_model_pauses_for_two_of_its_own_steps() -> None:
    _, seconds = settle(Pace(384), fixed_s=0.4, token_s=0.01)
    assert seconds == pytest.approx(0.8, rel=0.02)


def test_a_step_is_never_too_short_to_be_worth_it() -> None:
    assert settle(Pace(384), fixed_s=0.01, token_s=0.2)[0] == 32


def test_one_stall_is_forgotten() -> None:
    pace = Pace(384)
    before, _ = settle(pace, fixed_s=0.007, token_s=0.0005)
    pace.took(before, 0.0, 30.0, waited_for=True)
    assert pace.room() == 32
    assert settle(pace, fixed_s=0.007, token_s=0.0005)[0] == pytest.approx(before, abs=3)


def test_a_short_remainder_says_nothing_about_the_speed() -> None:
    pace = Pace(384)
    pace.took(3, 0.0, 0.05, waited_for=True)
    assert pace.room() == 384


def test_what_a_device_still_computes_is_not_taken_for_the_next_steps_own() -> None:
    pace = Pace(4096)
    machine = Machine(pace, 0.0, 0.0001)
    behind = machine.step(4096, waited_for=False)
    machine.step(100, behind=behind)
    assert pace.room() == pytest.approx(1000, rel=0.02)
    machine.step(4096, waited_for=False)
    machine.now += 60.0  # whoever asked left, and the device had nothing to do
    machine.step(100)
    assert pace.room() == pytest.approx(1000, rel=0.02)


async def test_a_long_prompt_beside_a_running_answer_is_cut_by_pace_and_alone_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pace, "room", lambda self: 40)
    engine = TransformersEngine(load("llama"), batch=BatchLimits(kv_bytes=64 << 20))
    try:
        parts: Any = engine._loop._parts
        run, seen = parts.step.run, []

        def counted(works: Any) -> Any:
            seen.append([(work.count, work.sequence.decoding) for work in works])
            return run(works)

        monkeypatch.setattr(parts.step, "run", counted)
        long = user("word " * 150)
        await token_ids(engine, greedy(long, tokens=2))
        assert max(count for works in seen for count, decoding in works if not decoding) > 100

        stream = engine.generate(greedy(user("tell me a long story"), tokens=400))
        await anext(stream)
        seen.clear()
        other = asyncio.create_task(token_ids(engine, greedy(user("other " * 150), tokens=2)))
        async for _ in stream:
            pass
        await other
        beside = [count for works in seen if len(works) > 1 for count, decoding in works if not decoding]
        assert beside
        assert max(beside) <= 40
    finally:
        await engine.aclose()
