"""Who runs next: requests wait in turns between owners, and a step takes decodes first, then prefill chunks."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import zip_longest
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the queue needs to know of a request."""

    owner: str


class Running(Protocol):
    """What a plan needs to know of a request."""

    owner: str

    @property
    def decoding(self) -> bool: ...

    @property
    def remaining(self) -> int: ...

    def ready(self) -> int: ...


R = TypeVar("R", bound=Running)
W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True)
class Share(Generic[R]):
    """What one request gets of a step."""

    sequence: R
    count: int


class Turns(Generic[R]):
    """Whose prompts and pictures go first, from step to step: each owner's first, then each owner's second, and so on,
    and who had a prompt done goes to the end of the line. So nobody's many prompts stand before another person's."""

    def __init__(self) -> None:
        self._line: dict[str, None] = {}

    def plan(self, running: Seq[R], budget: int, *, short: int) -> list[Share[R]]:
        """Each decoding request's token, then prefill chunks in the room that is left of `budget`; `short` as in
        `order`."""
        shares = [Share(sequence, sequence.remaining) for sequence in running if sequence.decoding]
        room = max(budget - sum(share.count for share in shares), 1)
        prefilling = [sequence for sequence in running if not sequence.decoding]
        # Where steps are brief, short prompts one after another would leave nothing to anybody's long one.
        quick = (room + 1) // 2 if any(sequence.remaining > short for sequence in prefilling) else room
        for sequence in self.order(prefilling, short=short):
            count = min(sequence.ready(), quick if sequence.remaining <= short else room, room)
            if count > 0:
                shares.append(Share(sequence, count))
                room -= count
                quick -= count if sequence.remaining <= short else 0
                if count == sequence.remaining:
                    self._line.pop(sequence.owner)
                    self._line[sequence.owner] = None
        return shares

    def order(self, prefilling: Iterable[R], *, short: int = 0) -> list[R]:
        """Remainders of up to `short` tokens (a follow-up question) go before their owner's long prompts that came
        earlier, and one of them before others' long ones: they cost those almost nothing."""
        by_owner: dict[str, list[R]] = {owner: [] for owner in self._line}
        for sequence in prefilling:
            by_owner.setdefault(sequence.owner, []).append(sequence)
        self._line = dict.fromkeys(owner for owner, own in by_owner.items() if own)

        def is_long(sequence: R) -> bool:
            return sequence.remaining > short

        rounds = zip_longest(*(sorted(own, key=is_long) for own in by_owner.values()))
        return [
            sequence for each in rounds for sequence in sorted((one for one in each if one is not None), key=is_long)
        ]


class FairQueue(Generic[W]):
    """Waiting requests: owners take turns, each owner's own go in order."""

    def __init__(self) -> None:
        self._by_owner: OrderedDict[str, deque[W]] = OrderedDict()

    def __len__(self) -> int:
        # Asked from other threads too, while the model's takes requests out: a copy, made in one step, holds still.
        return sum(len(queue) for queue in list(self._by_owner.values()))

    def __iter__(self) -> Iterator[W]:
        for queue in self._by_owner.values():
            yield from queue

    def push(self, item: W) -> None:
        self._by_owner.setdefault(item.owner, deque()).append(item)

    def first(self, ready: Callable[[W], bool] = lambda item: True) -> W | None:
        """The next one that is ready; it stays until `pop`."""
        return next((item for item in self if ready(item)), None)

    def pop(self, item: W) -> None:
        """Take it out; its owner goes to the end of the line."""
        queue = self._by_owner.pop(item.owner)
        queue.remove(item)
        if queue:
            self._by_owner[item.owner] = queue

    def take(self, leaves: Callable[[W], bool]) -> list[W]:
        """Remove and return all for which `leaves` is true."""
        taken = [item for item in self if leaves(item)]
        if taken:
            kept = [(owner, [item for item in queue if item not in taken]) for owner, queue in self._by_owner.items()]
            self._by_owner = OrderedDict((owner, deque(queue)) for owner, queue in kept if queue)
        return taken
