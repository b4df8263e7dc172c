"""What a load measured: an `Answer` per request, and the `Summary` of many with medians and tails."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """One request. Times in seconds: `started_s` since the load began, the others since the request was sent.

    `gaps_s` lie between the pieces of text as they came. `error` is the class of what went wrong, None if nothing.
    """

    chat: int
    turn: int
    started_s: float
    total_s: float
    first_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = True
    """Whether the server reported token counts; if not, pieces of text are counted instead."""
    error: str | None = None
    message: str = ""
    text: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        """After the first text, as this one reader saw it."""
        if self.first_s is None or self.completion_tokens < 2 or self.total_s <= self.first_s:
            return None
        return (self.completion_tokens - 1) / (self.total_s - self.first_s)


@dataclass(frozen=True)
class Spread:
    """Many values: the middle one, the one that 95 % stay below, and how many they are."""

    p50: float
    p95: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        found = sorted(value for value in values if value is not None)
        if not found:
            return None
        return cls(statistics.median(found), found[min(len(found) - 1, int(0.95 * len(found)))], len(found))


@dataclass(frozen=True)
class Summary:
    """A load in figures. Only answers that came whole count, except in `errors`."""

    requests: int
    wall_s: float
    tokens_per_s: float
    """Generated tokens of all together, over the whole time."""
    stream_tokens_per_s: Spread | None
    first_s: Mapping[int, Spread]
    """By turn."""
    gap_s: Spread | None
    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    completion_tokens: int
    counted: bool
    errors: Mapping[str, int] = field(default_factory=dict[str, int])
    error_messages: Mapping[str, str] = field(default_factory=dict[str, str])
    """One message of each class."""


def summarise(answers: Sequence[Answer]) -> Summary:
    whole = [answer for answer in answers if answer.error is None]
    begin = min((answer.started_s for answer in answers), default=0.0)
    end = max((answer.started_s + answer.total_s for answer in answers), default=0.0)
    made = sum(answer.completion_tokens for answer in whole)
    first = {
        turn: spread
        for turn in sorted({answer.turn for answer in whole})
        if (spread := Spread.of(answer.first_s for answer in whole if answer.turn == turn)) is not None
    }
    return Summary(
        requests=len(answers),
        wall_s=end - begin,
        tokens_per_s=made / (end - begin) if end > begin else 0.0,
        stream_tokens_per_s=Spread.of(answer.tokens_per_s for answer in whole),
        first_s=first,
        gap_s=Spread.of(gap for answer in whole for gap in answer.gaps_s),
        prompt_tokens=sum(answer.prompt_tokens for answer in whole),
        cached_tokens=sum(answer.cached_tokens for answer in whole),
        image_tokens=sum(answer.image_tokens for answer in whole),
        completion_tokens=made,
        counted=all(answer.counted for answer in whole),
        errors=dict(Counter(answer.error for answer in answers if answer.error is not None)),
        error_messages={answer.error: answer.message for answer in answers if answer.error is not None},
    )


def figures(summary: Summary) -> dict[str, float]:
    """The figures of a summary that can be compared, by a name that says the unit."""
    found: dict[str, float] = {"tokens/s": summary.tokens_per_s}
    take: tuple[tuple[str, Spread | None, Callable[[Spread], float]], ...] = (
        ("tokens/s of one stream, p50", summary.stream_tokens_per_s, lambda spread: spread.p50),
        *((f"first token, turn {turn}, s, p50", spread, _p50) for turn, spread in summary.first_s.items()),
        *((f"first token, turn {turn}, s, p95", spread, _p95) for turn, spread in summary.first_s.items()),
        ("between tokens, ms, p50", summary.gap_s, lambda spread: 1000 * spread.p50),
        ("between tokens, ms, p95", summary.gap_s, lambda spread: 1000 * spread.p95),
    )
    return found | {name: read(spread) for name, spread, read in take if spread is not None}


def _p50(spread: Spread) -> float:
    return spread.p50


def _p95(spread: Spread) -> float:
    return spread.p95
