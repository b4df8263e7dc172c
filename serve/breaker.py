"""Which workers a client leaves alone for now: those it could not reach, that failed it several times in a row, or that
are full.

Each one left alone is tried again after a pause, by one request; while it keeps failing the pauses double. One that is
full is asked again soon: its queue loses little meanwhile, and refusals cost it nothing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from llava_core.config import BreakerLimits
from llava_core.errors import Overloaded

_MOST_REMEMBERED = 1000


@dataclass
class _Circuit:
    failures: int = 0
    """In a row."""
    openings: int = 0
    """Of late; the pause doubles with each."""
    open_until: float | None = None
    trying: object | None = None
    """Stands for the one request that is finding out whether it works again."""
    closed_at: float = 0.0


class Breakers:
    """One circuit per worker's address; those never in trouble have none."""

    def __init__(self, limits: BreakerLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or BreakerLimits()
        self._clock = clock
        self._circuits: OrderedDict[str, _Circuit] = OrderedDict()
        self._full: OrderedDict[tuple[str, str], tuple[float, Overloaded]] = OrderedDict()

    def blocked(self) -> tuple[str, ...]:
        """Addresses that get no request now."""
        now = self._clock()
        return tuple(
            address
            for address, circuit in self._circuits.items()
            if circuit.open_until is not None and (circuit.trying is not None or now < circuit.open_until)
        )

    def full(self) -> Mapping[tuple[str, str], Overloaded]:
        """Models at addresses that had no room a moment ago, and what they said."""
        now = self._clock()
        while self._full and next(iter(self._full.values()))[0] <= now:
            self._full.popitem(last=False)
        return {place: said for place, (_, said) in self._full.items()}

    def refused(self, model: str, address: str, said: Overloaded) -> None:
        """It has no room for this model now."""
        self._full.pop((model, address), None)
        self._full[model, address] = self._clock() + self._limits.pause_full_s, said

    @contextmanager
    def trying(self, address: str) -> Generator[None]:
        """Around a request to this address, which is not `blocked`: where it is the one that finds out, no other goes
        there meanwhile."""
        circuit = self._circuits.get(address)
        if circuit is None or circuit.open_until is None or circuit.trying is not None:
            yield
            return
        circuit.trying = this = object()
        try:
            yield
        finally:
            # Not for another one: the circuit may have closed and opened again while this answer was read.
            if circuit.trying is this:
                circuit.trying = None

    def succeeded(self, address: str) -> None:
        circuit = self._circuits.get(address)
        if circuit is None:
            return
        now = self._clock()
        if circuit.open_until is not None:
            circuit.open_until, circuit.closed_at = None, now
        circuit.failures, circuit.trying = 0, None
        if now - circuit.closed_at > self._limits.calm_s:
            del self._circuits[address]

    def failed(self, address: str, *, at_once: bool = False) -> bool:
        """Take note of a failure; whether the address is left alone from now on. `at_once` does not wait for more."""
        limits = self._limits
        circuit = self._circuits.setdefault(address, _Circuit())
        self._circuits.move_to_end(address)
        while len(self._circuits) > _MOST_REMEMBERED:
            self._circuits.popitem(last=False)
        circuit.failures += 1
        half_open = circuit.open_until is not None
        if not (at_once or half_open or circuit.failures >= limits.failures):
            return False
        pause = min(limits.pause_most_s, limits.pause_first_s * 2.0 ** min(circuit.openings, 30))
        circuit.open_until, circuit.failures = self._clock() + pause, 0
        circuit.openings += 1
        return True
