"""What one caller may ask for, as people write it: 60/minute, 4 at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from limits import RateLimitItem, parse_many

from llava_core.errors import BadRequest


@dataclass(frozen=True)
class Quota:
    """`rate` as in `60/minute` or `10/second;1000/day`; None is without limit. Raises BadRequest."""

    rate: str | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        if self.at_once is not None and self.at_once < 1:
            raise BadRequest(f"{self.at_once} requests at once are none; allow 1 or more")
        self.windows  # noqa: B018  checks how it is written

    @cached_property
    def windows(self) -> list[RateLimitItem]:
        try:
            windows = [] if self.rate is None else parse_many(self.rate)
        except ValueError:
            windows = None
        if windows is None or any(each.amount < 1 or each.multiples < 1 for each in windows):
            raise BadRequest(f"{self.rate!r} is no rate; write 60/minute, or 10/second;1000/day for two at once")
        return windows
