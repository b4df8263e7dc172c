"""The table of workers against a model of it, through whatever order of events hypothesis thinks of."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from llava_core.config import WorkerTimings
from llava_core.errors import NoWorker, UnknownModel
from serve.dispatch import POLICIES
from serve.protocol import Registration, WorkerStatus
from serve.worker_pool import WorkerPool

ADDRESSES = [f"http://127.0.0.1:{port}" for port in range(1, 6)]
MODELS = ["a", "b", "c"]
TIMINGS = WorkerTimings()


class Table(RuleBasedStateMachine):
    """What must hold: only who was heard of within its lease is given out, a request always gets a worker that serves
    its model and is not excluded if there is one, and a refusal says truly whether the model was ever there."""

    addresses = Bundle("addresses")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pool = WorkerPool(policy=POLICIES["shortest_queue"], dice=random.Random(1))
        self.seen: dict[str, float] = {}
        self.models: dict[str, tuple[str, ...]] = {}
        self.suspects: set[str] = set()
        self.ever: set[str] = set()

    def live(self) -> set[str]:
        return {address for address, seen in self.seen.items() if self.now - seen <= TIMINGS.lease_s}

    def late(self, address: str) -> bool:
        return self.now - self.seen[address] > TIMINGS.late_s

    @rule(
        address=st.sampled_from(ADDRESSES),
        names=st.lists(st.sampled_from(MODELS), min_size=1, max_size=3, unique=True),
        speed=st.floats(0.01, 1e6),
        queue=st.integers(0, 1_000_000),
        capacity=st.integers(1, 1_000_000),
    )
    def register(self, address: str, names: list[str], speed: float, queue: int, capacity: int) -> None:
        status = WorkerStatus(tuple(names), speed, queue, capacity)
        new = self.pool.register(Registration(address, status), self.now)
        assert new == (address not in self.seen)
        self.seen[address], self.models[address] = self.now, tuple(names)
        self.suspects.discard(address)
        self.ever.update(names)

    @rule(address=st.sampled_from(ADDRESSES), queue=st.integers(0, 1_000_000))
    def beat(self, address: str, queue: int) -> None:
        assert self.pool.heartbeat(address, queue, self.now) == (address in self.seen)
        if address in self.seen:
            self.seen[address] = self.now
            self.suspects.discard(address)

    @rule(address=st.sampled_from(ADDRESSES))
    def leave(self, address: str) -> None:
        assert self.pool.deregister(address, self.now, 30) == (address in self.seen)
        self.seen.pop(address, None)
        self.suspects.discard(address)

    @rule(address=st.sampled_from(ADDRESSES), answers=st.booleans())
    def probe(self, address: str, answers: bool) -> None:
        if answers:
            self.pool.heard(address, self.now)
            if address in self.seen:
                self.seen[address] = self.now
                self.suspects.discard(address)
        elif self.pool.suspect(address, self.now):
            assert self.late(address)
            self.suspects.add(address)

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        gone = set(self.pool.expire(self.now))
        assert gone == self.seen.keys() - self.live()
        for address in gone:
            del self.seen[address]
            self.suspects.discard(address)

    @rule(model=st.sampled_from([*MODELS, "never"]), exclude=st.lists(st.sampled_from(ADDRESSES), max_size=3))
    def pick(self, model: str, exclude: list[str]) -> None:
        serving = {address for address in self.live() if model in self.models[address]}
        may = serving - set(exclude)
        try:
            address = self.pool.pick(model, self.now, exclude)
        except UnknownModel:
            assert not serving
            assert model not in self.ever
        except NoWorker:
            assert not may
        else:
            assert address in may
            # Nobody who is late where somebody is punctual.
            assert not self.late(address) or all(self.late(other) for other in may)

    @invariant()
    def lists_are_true(self) -> None:
        live = self.live()
        assert set(self.pool.addresses(self.now)) == live
        for address in ADDRESSES:
            assert self.pool.lists(address, self.now) == (address in live and address not in self.suspects)
        counted = {card.info.name: card.workers for card in self.pool.cards(self.now)}
        expected = {name: sum(name in self.models[address] for address in live) for name in MODELS}
        assert counted == {name: count for name, count in expected.items() if count}
        assert sum(load.workers or 0 for load in self.pool.load(self.now)) == sum(expected.values())


TestTable = Table.TestCase
TestTable.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
