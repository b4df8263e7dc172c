"""The controller's whole knowledge: which workers are alive, what they serve, how busy they are.

No input or output and no clock of its own: every method is told the time, in seconds of a clock that only goes
forward. What it knows is soft: workers notice that their line to the controller ended and register anew.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from llava_core.config import WorkerTimings
from llava_core.errors import NoWorker, Overloaded, UnknownModel
from llava_core.types import ModelInfo
from serve.dispatch import Candidate, Policy, shortest_queue
from serve.protocol import ListedWorker, Load, ModelCard, Registration, WorkerStatus

MAX_WORKERS = 1000
_REMEMBERED_MODELS = 1000
_REMEMBERED_GONE = 1000


@dataclass(frozen=True)
class _Entry:
    status: WorkerStatus
    seen: float
    picks: int = 0
    """Requests sent there since it last told its queue."""
    last_picked: float = 0.0
    suspect: bool = False
    """It was late and did not answer either."""


@dataclass
class WorkerPool:
    policy: Policy = shortest_queue
    timings: WorkerTimings = field(default_factory=WorkerTimings)
    dice: random.Random = field(default_factory=random.Random)
    _entries: dict[str, _Entry] = field(default_factory=dict[str, _Entry], init=False)
    # Names served before, oldest first: their workers are expected back, other names were never there.
    _known_models: dict[str, None] = field(default_factory=dict[str, None], init=False)
    # Who is listed no more, oldest first, and from when on no answer is to be waited for.
    _gone: dict[str, float] = field(default_factory=dict[str, float], init=False)

    def register(self, registration: Registration, now: float) -> bool:
        """Take a worker in, or take note of what it newly says; True if it was not listed before."""
        address = registration.worker_name
        before = self._entries.get(address)
        if before is None and len(self._entries) >= MAX_WORKERS and not self.expire(now):
            raise Overloaded(f"{MAX_WORKERS} workers are registered, which is the most", retry_after=5)
        self._entries[address] = _Entry(
            registration.worker_status, now, last_picked=before.last_picked if before else 0
        )
        self._gone.pop(address, None)
        for name in registration.worker_status.model_names:
            self._known_models.pop(name, None)
            self._known_models[name] = None
        while len(self._known_models) > _REMEMBERED_MODELS:
            del self._known_models[next(iter(self._known_models))]
        return before is None

    def heartbeat(self, address: str, queue_length: int, now: float) -> bool:
        """Keep a worker listed; False if it is not, so that it registers again."""
        entry = self._entries.get(address)
        if entry is None:
            return False
        status = replace(entry.status, queue_length=queue_length)
        self._entries[address] = replace(entry, status=status, seen=now, picks=0, suspect=False)
        return True

    def heard(self, address: str, now: float) -> None:
        """It answered a question, so it lives, though it tells nothing of its queue."""
        entry = self._entries.get(address)
        if entry is not None:
            self._entries[address] = replace(entry, seen=now, suspect=False)

    def suspect(self, address: str, now: float) -> bool:
        """It did not answer; True if that is news. One that was heard of meanwhile is not late any more."""
        entry = self._entries.get(address)
        if entry is None or entry.suspect or not self._late(entry, now):
            return False
        self._entries[address] = replace(entry, suspect=True)
        return True

    def listed(self, now: float) -> tuple[ListedWorker, ...]:
        """All that are there, by address."""
        return tuple(
            ListedWorker(address, entry.status, max(0.0, now - entry.seen), entry.suspect or self._late(entry, now))
            for address, entry in sorted(self._live(now).items())
        )

    def late(self, now: float) -> tuple[str, ...]:
        """Those of whom too long nothing was heard."""
        return tuple(address for address, entry in self._live(now).items() if self._late(entry, now))

    def deregister(self, address: str, now: float, drain_s: float) -> bool:
        """It said goodbye: it gets no more requests, and finishes within `drain_s` seconds those it has."""
        return self._leave(address, now + drain_s)

    def lose(self, address: str, now: float) -> bool:
        """It went without a word; whether it was listed until now."""
        return self._leave(address, now)

    def expire(self, now: float) -> tuple[str, ...]:
        """Forget workers whose lease has run out, and say which. Nobody saw them since it did."""
        gone = tuple(self._entries.keys() - self._live(now).keys())
        for address in gone:
            self._leave(address, now)
        return gone

    def pick(self, model: str, now: float, exclude: Sequence[str] = ()) -> str:
        """The address of the worker that takes the next request for `model`, not one of `exclude`.

        Raises UnknownModel where nobody serves it, NoWorker where somebody did or the only ones are excluded.
        """
        live = self._live(now)
        serving = {address: entry for address, entry in live.items() if model in entry.status.model_names}
        candidates = {address: entry for address, entry in serving.items() if address not in exclude}
        if not candidates:
            raise self._nobody(model, bool(serving), live.values())
        punctual = {address: entry for address, entry in candidates.items() if not self._late(entry, now)}
        chosen_among = [_candidate(address, entry) for address, entry in (punctual or candidates).items()]
        address = self.policy(chosen_among, self.dice).address
        entry = self._entries[address]
        self._entries[address] = replace(entry, picks=entry.picks + 1, last_picked=now)
        return address

    def lists(self, address: str, now: float) -> bool:
        """Whether it is there and was not found hanging."""
        entry = self._live(now).get(address)
        return entry is not None and not entry.suspect

    def is_worth_waiting_for(self, address: str, now: float, *, begun: bool) -> bool:
        """False for a worker that went without a word or whose time since its goodbye is over, and while others could
        take over all it serves, for one that is late or, where the answer has begun, under suspicion. One that was
        never heard of may yet register with a controller that has just started."""
        live = self._live(now)
        entry = live.get(address)
        if entry is None:
            return address not in self._entries and now < self._gone.get(address, math.inf)
        if not (entry.suspect if begun else self._late(entry, now)):
            return True
        others = {
            name
            for other in live.values()
            if other is not entry and not self._late(other, now)
            for name in other.status.model_names
        }
        return not others.issuperset(entry.status.model_names)

    def addresses(self, now: float) -> tuple[str, ...]:
        return tuple(self._live(now))

    def places(self, now: float) -> frozenset[tuple[str, str]]:
        """Every model at every address."""
        return frozenset(
            (name, address) for address, entry in self._live(now).items() for name in entry.status.model_names
        )

    def cards(self, now: float) -> tuple[ModelCard, ...]:
        """What is served now, sorted by name; of several workers the one that registered first describes the model."""
        workers: dict[str, int] = {}
        infos: dict[str, ModelInfo] = {}
        for entry in self._live(now).values():
            for info in entry.status.models:
                infos.setdefault(info.name, info)
            for name in dict.fromkeys(entry.status.model_names):
                workers[name] = workers.get(name, 0) + 1
        plain = (ModelInfo(name, engine="unknown", context_length=0) for name in workers)
        return tuple(
            ModelCard(infos.get(info.name, info), workers[info.name])
            for info in sorted(plain, key=lambda info: info.name)
        )

    def total(self, now: float) -> WorkerStatus | None:
        """All workers as if they were one, the way a controller of controllers sees it; None without any."""
        cards = self.cards(now)
        statuses = [entry.status for entry in self._live(now).values()]
        if not statuses:
            return None
        return WorkerStatus(
            model_names=tuple(card.info.name for card in cards),
            speed=sum(status.speed for status in statuses),
            queue_length=sum(status.queue_length for status in statuses),
            capacity=sum(status.capacity for status in statuses),
            models=tuple(card.info for card in cards),
        )

    def load(self, now: float) -> tuple[Load, ...]:
        """By model: what its workers run, as they told last, what waits there, and how many they are."""
        loads: dict[str, Load] = {}
        for entry in self._live(now).values():
            running = min(entry.status.queue_length, entry.status.capacity)
            for name in entry.status.model_names:
                before = loads.get(name, Load(name, 0, 0, 0))
                waiting = before.waiting + entry.status.queue_length - running
                loads[name] = Load(name, before.running + running, waiting, (before.workers or 0) + 1)
        return tuple(loads.values())

    def _leave(self, address: str, gone_at: float) -> bool:
        if self._entries.pop(address, None) is None:
            return False
        self._gone.pop(address, None)
        self._gone[address] = gone_at
        while len(self._gone) > _REMEMBERED_GONE:
            del self._gone[next(iter(self._gone))]
        return True

    def _live(self, now: float) -> dict[str, _Entry]:
        return {a: entry for a, entry in self._entries.items() if now - entry.seen <= self.timings.lease_s}

    def _late(self, entry: _Entry, now: float) -> bool:
        return now - entry.seen > self.timings.late_s

    def _nobody(self, model: str, excluded: bool, live: Iterable[_Entry]) -> UnknownModel | NoWorker:
        if excluded:
            return NoWorker(f"every worker for {model!r} failed just now; try again in a moment", retry_after=1)
        if model in self._known_models:
            return NoWorker(f"the worker for {model!r} has gone; try again when it is back", retry_after=5)
        running = sorted({name for entry in live for name in entry.status.model_names})
        if not running:
            return NoWorker("no worker is running yet; start one with python -m serve.model_worker", retry_after=5)
        return UnknownModel(f"no worker serves {model[:200]!r}; running: {', '.join(running)}", param="model")


def _candidate(address: str, entry: _Entry) -> Candidate:
    status = entry.status
    return Candidate(address, status.speed, status.queue_length + entry.picks, status.capacity, entry.last_picked)
