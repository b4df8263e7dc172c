"""The one table between error classes and HTTP numbers, and the way back from another server's answer to a class."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, cast

from llava_core.errors import (
    BadImage,
    BadRequest,
    ContentRefused,
    ContextOverflow,
    DevicePoisoned,
    EngineFailure,
    Forbidden,
    LlavaError,
    MissingDependency,
    ModerationFailed,
    NoWorker,
    OutOfMemory,
    Overloaded,
    Unauthorized,
    UnknownModel,
    WorkerLost,
    WorkerTimeout,
    from_body,
)

STATUS: Mapping[type[LlavaError], int] = {
    BadRequest: 400,
    ContentRefused: 400,
    ContextOverflow: 400,
    BadImage: 400,
    Unauthorized: 401,
    Forbidden: 403,
    UnknownModel: 404,
    Overloaded: 429,
    NoWorker: 503,
    ModerationFailed: 503,
    WorkerLost: 502,
    WorkerTimeout: 504,
    MissingDependency: 500,
    EngineFailure: 500,
    DevicePoisoned: 503,
    OutOfMemory: 503,
    LlavaError: 500,
}

CLASS: Mapping[int, type[LlavaError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: UnknownModel,
    413: BadRequest,
    422: BadRequest,
    429: Overloaded,
    502: WorkerLost,
    503: NoWorker,
    504: WorkerTimeout,
}
"""What a bare number means where the body names no class of ours."""


def status_of(error: LlavaError) -> int:
    """The number of the class, or of its nearest ancestor in the table."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_from(status: int, headers: Mapping[str, str], body: bytes, *, source: str) -> LlavaError:
    """The error that another server's answer describes; `source` names that server in a sentence."""
    fallback = CLASS.get(status, BadRequest if 400 <= status < 500 else EngineFailure)
    described: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        described = json.loads(body)
    if isinstance(described, dict):
        error = from_body(cast(dict[str, Any], described), fallback=fallback)
    else:
        error = fallback(f"{source} answered with HTTP {status}")
    if error.retry_after is None:
        error.retry_after = _seconds(headers.get("retry-after"))
    return error


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
