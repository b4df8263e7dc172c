"""The shared words: messages of text and image parts, a request, the chunks that answer it.

All records are frozen. A `Request` is complete and checked when it exists: building one with a wrong value
raises `BadRequest`, so engines never meet NaN temperatures or empty chats.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llava_core.errors import BadRequest

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]

DEFAULT_TEMPERATURE = 0.2
DEFAULT_TOP_P = 0.7
DEFAULT_MAX_TOKENS = 512
MAX_GRAMMAR_CHARS = 65_536


@dataclass(frozen=True)
class TextPart:
    """Text exactly as a person or model wrote it; it is never parsed for special tokens."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """One picture by URL: a `data:` URL (the usual case) or http(s), which only a worker told to may fetch."""

    url: str


class ImageFile(ImagePart):
    """The same for a picture in a file of this machine. Its URL is made when it is asked for and not kept, so that who
    sends it can do so piece by piece. `size` is in bytes."""

    path: Path
    mime: str
    size: int

    def __init__(self, path: Path, mime: str, size: int) -> None:
        for name, value in (("path", path), ("mime", mime), ("size", size)):
            object.__setattr__(self, name, value)

    @property
    def url_head(self) -> str:
        """What stands in the URL before the data."""
        return f"data:{self.mime};base64,"

    @property
    def url(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Raises OSError where the file has gone."""
        return self.url_head + base64.b64encode(self.path.read_bytes()).decode("ascii")


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """One turn; images may stand anywhere among its parts, in any number."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


def user(*parts: str | Part) -> Message:
    """`user(image, "What is this?")`: bare strings become text parts."""
    return Message("user", _parts(parts))


def assistant(*parts: str | Part) -> Message:
    return Message("assistant", _parts(parts))


def system(*parts: str | Part) -> Message:
    return Message("system", _parts(parts))


def _parts(parts: Sequence[str | Part]) -> tuple[Part, ...]:
    return tuple(TextPart(part) if isinstance(part, str) else part for part in parts)


@dataclass(frozen=True)
class Grammar:
    """The form an answer is held to: any JSON object, JSON after the schema in `text`, or all of the pattern in it."""

    kind: Literal["json_object", "json_schema", "regex"]
    text: str = ""

    def __post_init__(self) -> None:
        name = "structured_outputs" if self.kind == "regex" else "response_format"
        if len(self.text) > MAX_GRAMMAR_CHARS:
            raise BadRequest(
                f"{name} holds {len(self.text)} characters, at most {MAX_GRAMMAR_CHARS} are taken; simplify it",
                param=name,
            )
        if not self.text and self.kind != "json_object":
            raise BadRequest(f"{name} is empty; leave it out to let the answer be any text", param=name)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when to stop. `temperature` 0 is greedy; `top_k` 0 is off.

    `max_tokens` None means as many as the context leaves, at most the engine's own limit. `logprobs` is the
    number of alternatives to report beside each token's own log-probability, None for no report.
    Raises BadRequest for a value out of range, NaN and infinity among them.
    """

    max_tokens: int | None = None
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    logprobs: int | None = None
    grammar: Grammar | None = None
    """Held to at every token, so that a complete answer has this form; one cut by `max_tokens` is its beginning."""

    def __post_init__(self) -> None:
        _within("max_tokens", self.max_tokens, 1, 1 << 20)
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("top_k", self.top_k, 0, 1 << 20)
        _within("min_p", self.min_p, 0.0, 1.0)
        _within("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        _within("min_tokens", self.min_tokens, 0, self.max_tokens or 1 << 20)
        _within("logprobs", self.logprobs, 0, 20)
        for bias in self.logit_bias.values():
            _within("logit_bias", bias, -100.0, 100.0)
        if len(self.stop) > 16 or any(not text or len(text) > 256 for text in self.stop):
            raise BadRequest("stop takes at most 16 strings of 1 to 256 characters each", param="stop")
        if self.grammar and self.ignore_eos:
            raise BadRequest("an answer held to a form ends with it; leave ignore_eos out", param="ignore_eos")


def _within(name: str, value: float | None, low: float, high: float) -> None:
    # NaN compares false with everything; an integer too large for a float compares all the same.
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name} must be between {low:,} and {high:,}, not {value}", param=name)


@dataclass(frozen=True)
class Begun:
    """What an answer has said already, as text and as the ids it was drawn as: it broke off, and goes on elsewhere.

    Its tokens count as the answer's own: for `max_tokens`, penalties, random numbers and usage.
    """

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One answer wanted from one model.

    `continue_final` asks to go on with the last message, which must be an assistant's, instead of opening a new
    turn. `owner` separates callers for fairness and caching (a session or key; never shown to anyone).
    `begun` asks for the rest of an answer to this request, so that both together are what one engine would have said.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    continue_final: bool = False
    owner: str = ""
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    begun: Begun | None = None
    deadline: float | None = field(default=None, compare=False)
    """On this machine's monotonic clock: what has not been answered by then is not worth beginning."""
    trace: str | None = field(default=None, compare=False)
    """The W3C `traceparent` of what this is a part of, where traces are wanted."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise BadRequest("messages is empty; send at least one user message", param="messages")
        last = self.messages[-1].role
        if self.continue_final and last != "assistant":
            raise BadRequest("continue_final_message needs an assistant message at the end", param="messages")
        if not self.continue_final and last != "user":
            raise BadRequest(f"the last message must be the user's, not the {last}'s", param="messages")

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(image for message in self.messages for image in message.images)


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer. `prompt_tokens` is the prefill length, image tokens included;
    `cached_tokens` of those did not have to be computed again."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Phases:
    """When an engine's work on an answer passed from one phase to the next, on its machine's monotonic clock: it came,
    it left the queue, its first token was there, its last."""

    arrived: float
    admitted: float
    first: float
    ended: float


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token with its log-probability and the likeliest alternatives, likeliest first."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """What is new since the chunk before: some text, or the end.

    A stream is any number of chunks without `finish_reason`, then exactly one with it, which also carries the
    `usage`. A stream that ends otherwise has failed. `token_ids` are those drawn since the chunk before, where the
    engine tells them; the answer can then go on elsewhere exactly as it would have here.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    """Which of several answers to one request it belongs to; engines give one."""
    token_ids: tuple[int, ...] = ()
    phases: Phases | None = field(default=None, compare=False)
    """With the end, where the engine tells."""
    flagged: tuple[str, ...] = ()
    """With the end, what the operator's moderation found in the whole answer."""


@dataclass(frozen=True)
class ModelInfo:
    """What a person may want to know of a served model. `note` is shown beside its name (say, that the weights
    are random); `template` and `template_reason` tell which prompt format is used and why."""

    name: str
    engine: str
    context_length: int
    accepts_images: bool = True
    device: str = "cpu"
    dtype: str = "float32"
    template: str = ""
    template_reason: str = ""
    note: str = ""
    inspects: bool = False
    """Whether it tells what it makes of pictures and prompts, and where answers look."""


@dataclass(frozen=True)
class EngineMemory:
    """What an engine's device holds: tokens of chats, running ones and those kept for the turn that follows, out of
    `kv_total`; bytes of the device that anybody uses, and all it has, 0 where nobody tells."""

    kv_running: int
    kv_parked: int
    kv_total: int
    device_used: int = 0
    device_total: int = 0


@dataclass(frozen=True)
class EngineStatus:
    """How busy an engine is, for the controller's choice and for people."""

    running: int = 0
    waiting: int = 0
    capacity: int = 1
    """Requests that run at once at full speed; more than this wait."""
    max_waiting: int | None = None
    """So many at most; None where nobody says."""

    @property
    def full(self) -> bool:
        """Whether the next request would be refused. What waits includes what is on its way to a free place."""
        return not self.has_room_for(1)

    def has_room_for(self, requests: int) -> bool:
        """Whether so many more would be taken."""
        most = None if self.max_waiting is None else self.capacity + self.max_waiting
        return most is None or self.running + self.waiting + requests <= most
