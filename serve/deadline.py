"""The time by which an answer is wanted: it travels with the request, from hop to hop, as the seconds that are left."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import TypeVar

from llava_core.errors import BadRequest, WorkerTimeout
from llava_core.types import Request
from serve.at_once import within

T = TypeVar("T")

HEADER = "X-Request-Timeout"
"""Seconds until the first token of a stream, or all of another answer, must be there."""
MOST_S = 24 * 3600.0


def with_deadline(request: Request, headers: Mapping[str, str]) -> Request:
    """The request with the deadline that its headers give it, if any. Raises BadRequest."""
    given = headers.get(HEADER)
    if given is None:
        return request
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MOST_S:
        raise BadRequest(f"{HEADER} must be a number of seconds above 0, at most {MOST_S:.0f}", param=HEADER)
    return replace(request, deadline=time.monotonic() + seconds)


async def in_time(step: Awaitable[T], request: Request) -> T:
    """The result of `step`, which is cancelled at the deadline. Raises WorkerTimeout then."""
    deadline = request.deadline
    if deadline is None:
        return await step
    timer = asyncio.timeout_at(deadline)
    try:
        return await within(lambda: timer, step)
    except TimeoutError:
        if not timer.expired():
            raise
        raise WorkerTimeout(
            "the answer did not come within the time that the request allows it; allow more, or try again later",
            request_id=request.id,
        ) from None
