"""Every error a user can meet: a class per cause, a sentence per occurrence, the same on both sides of a wire.

A message says what happened, to what, and what to do next. `to_body` and `from_body` carry an error through
HTTP and server-sent events without losing its class; the HTTP numbers live in `serve/http_errors.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class LlavaError(Exception):
    """Root of the tree. `retryable` says whether the same request may succeed a little later or elsewhere."""

    retryable: ClassVar[bool] = False
    openai_type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """`param` names the offending request field, `retry_after` is in seconds."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.request_id = request_id

    @property
    def code(self) -> str:
        return type(self).__name__

    def to_body(self) -> dict[str, Any]:
        """The OpenAI error body: `{"error": {"message", "type", "code", "param"}}`, plus what we know more."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.openai_type,
            "code": self.code,
            "param": self.param,
        }
        if self.retry_after is not None:
            error["retry_after"] = self.retry_after
        if self.request_id is not None:
            error["request_id"] = self.request_id
        return {"error": error}


class BadRequest(LlavaError):
    """The request itself is wrong; sending it again will not help."""

    openai_type = "invalid_request_error"


class ContextOverflow(BadRequest):
    """The chat is longer than the model's context."""


class BadImage(BadRequest):
    """An image cannot be read or breaks a limit; the message says which."""


class UnknownModel(BadRequest):
    """No worker serves a model of that name."""


class ContentRefused(BadRequest):
    """The operator's moderation does not let this through; the message names the categories."""


class BadCheckpoint(BadRequest):
    """A folder is no checkpoint that can be loaded; the message lists what was found and what is understood."""


class Unauthorized(LlavaError):
    """The caller did not show the credential this address asks for."""

    openai_type = "authentication_error"


class Forbidden(LlavaError):
    """The caller's credential is a good one, but not for this."""

    openai_type = "permission_error"


class Overloaded(LlavaError):
    """The queue is full; `retry_after` says when to come back."""

    retryable = True
    openai_type = "rate_limit_error"


class ModerationFailed(LlavaError):
    """The operator's moderation could not be asked, and nothing passes without it."""

    retryable = True


class NoWorker(LlavaError):
    """No worker is there to take the request, or the controller cannot be reached."""

    retryable = True


class WorkerLost(LlavaError):
    """The worker went away before or while it answered."""

    retryable = True


class WorkerTimeout(LlavaError):
    """The worker is there but did not answer in time."""

    retryable = True


class MissingDependency(LlavaError):
    """An optional package is needed for what was asked; the message names the pip command."""


class EngineFailure(LlavaError):
    """The engine failed in a way nobody foresaw: the user gets the request id, the log gets the cause."""


class DevicePoisoned(EngineFailure):
    """The device failed in a way that it does not recover from in this process; another worker can answer."""

    retryable = True


class OutOfMemory(EngineFailure):
    """The device had no memory left for this request; a shorter one, or a later one, may pass."""

    retryable = True


def from_body(body: Mapping[str, Any], *, fallback: type[LlavaError] = EngineFailure) -> LlavaError:
    """The error that `to_body` described; `fallback` where the class is not one of ours (another server's)."""
    detail: Any = body.get("error", body)
    if not isinstance(detail, Mapping):
        return fallback(str(detail))
    fields: Mapping[str, Any] = detail  # pyright: ignore[reportUnknownVariableType]
    cls = _BY_NAME.get(str(fields.get("code")), fallback)
    retry_after = fields.get("retry_after")
    param, request_id = fields.get("param"), fields.get("request_id")
    return cls(
        str(fields.get("message") or cls.__doc__),
        param=None if param is None else str(param),
        # Another server's word; what is no sensible wait (NaN, negative, huge) is none.
        retry_after=float(retry_after) if isinstance(retry_after, int | float) and 0 <= retry_after < 1e6 else None,
        request_id=None if request_id is None else str(request_id),
    )


def _tree(cls: type[LlavaError]) -> Iterator[type[LlavaError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)


_BY_NAME: Mapping[str, type[LlavaError]] = {cls.__name__: cls for cls in _tree(LlavaError)}
