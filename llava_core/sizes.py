"""Sizes of memory as people write them: 8GiB, 512 MB, or a share of what is there."""

from __future__ import annotations

import re

from llava_core.errors import BadRequest

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?)(?P<binary>i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_BINARY, _DECIMAL = 1024, 1000


def parse_bytes(text: str, *, what: str) -> int:
    """Bytes of `8GiB`, `8G` (the same), `8GB` (decimal) or a bare number. BadRequest names `what` has no size."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise BadRequest(f"{what} {text!r} is no size; write it as in 8GiB or 512MB", param=what)
    decimal = not found["binary"] and text.strip()[-1] in "bB" and found["unit"]
    return int(float(found["number"]) * (_DECIMAL if decimal else _BINARY) ** _POWERS[found["unit"].lower()])


def parse_bytes_or_share(text: str, *, what: str) -> tuple[int | None, float | None]:
    """A size in bytes, or `40%` as a share."""
    given = text.strip()
    if not given.endswith("%"):
        try:
            return parse_bytes(given, what=what), None
        except BadRequest as cause:
            raise BadRequest(f"{what} {text!r} is no size; write it as in 8GiB, 512MB or 40%", param=what) from cause
    try:
        share = float(given[:-1]) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise BadRequest(f"{what} {text!r} is no share of memory; write it as in 40%", param=what)
    return None, share
