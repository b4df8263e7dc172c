"""What goes into the store and comes out of it: conversations as rows of messages, parents before their children."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class KeptPicture:
    """A picture of a question. `file` is where its bytes are while it is not stored; `sha256` names them once it is."""

    name: str
    mime: str
    size: int
    example: str = ""
    sha256: str | None = None
    file: str = ""


@dataclass(frozen=True)
class Generation:
    """What a model was asked with, and what became of it."""

    model: str
    status: str
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int | None = None
    error_class: str | None = None
    error_message: str | None = None
    finish_reason: str | None = None
    first_token_s: float | None = None
    answer_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    image_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class KeptMessage:
    """A question or an answer. Among those with the same `parent`, `position` orders them and one is `shown`."""

    key: str
    parent: str | None
    role: Role
    position: int
    shown: bool
    text: str
    pictures: tuple[KeptPicture, ...] = ()
    generation: Generation | None = None
    rating: str = ""
    flagged: bool = False


@dataclass(frozen=True)
class KeptChat:
    """A conversation as it is to be written. `whole` False means that older messages may be stored that are not here:
    nothing is taken away then. A column of a comparison has its number, and its place there."""

    id: str
    owner: str
    title: str
    place: str
    system: str
    serial: int
    messages: tuple[KeptMessage, ...]
    whole: bool = True
    comparison: str | None = None
    slot: int | None = None


@dataclass(frozen=True)
class ListedColumn:
    """One of the conversations of a comparison."""

    id: str
    models: tuple[str, ...] = ()
    shared: str | None = None


@dataclass(frozen=True)
class Listed:
    """A conversation in the list of its owner, or a comparison with its columns from left to right."""

    id: str
    title: str
    place: str
    updated_at: datetime
    models: tuple[str, ...] = ()
    pictures: int = 0
    shared: str | None = None
    """The token of its link, where it is shared."""
    found: str = ""
    """A piece of text around what was searched for."""
    columns: tuple[ListedColumn, ...] = ()


@dataclass(frozen=True)
class Shared:
    """A conversation as others may read it."""

    title: str
    created_at: datetime
    messages: tuple[KeptMessage, ...]
