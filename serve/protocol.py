"""The records that controller, workers and clients exchange; the field names are the original LLaVA's where it had one.

They are plain dataclasses: FastAPI checks their types on arrival, and building one with a wrong value raises
BadRequest, so a table never holds a speed of NaN or an address that is no address.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from llava_core.config import WorkerTimings
from llava_core.errors import BadRequest
from llava_core.types import ModelInfo

MAX_MODELS_PER_WORKER = 64
MAX_NAME_CHARS = 512


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker serves and how busy it is.

    `queue_length` counts running and waiting requests, `capacity` how many run at full speed at once, `speed`
    weighs this worker against others. `models` tells more of the names in `model_names`, where it is known.
    """

    model_names: tuple[str, ...]
    speed: float = 1.0
    queue_length: int = 0
    capacity: int = 1
    models: tuple[ModelInfo, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.model_names) <= MAX_MODELS_PER_WORKER:
            raise BadRequest(f"a worker serves 1 to {MAX_MODELS_PER_WORKER} models", param="model_names")
        if not all(name.strip() and name.isprintable() and len(name) <= MAX_NAME_CHARS for name in self.model_names):
            raise BadRequest(f"a model's name has 1 to {MAX_NAME_CHARS} printable characters", param="model_names")
        if any(info.name not in self.model_names for info in self.models):
            raise BadRequest("models must only describe what model_names lists", param="models")
        if not all(_is_unicode(value) for info in self.models for value in astuple(info)):
            raise BadRequest("models must be described in text without half surrogate pairs", param="models")
        if not (math.isfinite(self.speed) and 0 < self.speed <= 1e6):
            raise BadRequest("speed must be a number above 0, at most 1e6", param="speed")
        if not 0 <= self.queue_length <= 1_000_000:
            raise BadRequest("queue_length must be between 0 and 1000000", param="queue_length")
        if not 1 <= self.capacity <= 1_000_000:
            raise BadRequest("capacity must be between 1 and 1000000", param="capacity")


@dataclass(frozen=True)
class Registration:
    """A worker says that it is there; `worker_name` is the address at which clients reach it."""

    worker_name: str
    worker_status: WorkerStatus

    def __post_init__(self) -> None:
        check_address(self.worker_name)


@dataclass(frozen=True)
class HeartBeat:
    """A worker says that it is still there and how busy it is."""

    worker_name: str
    queue_length: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.queue_length <= 1_000_000:
            raise BadRequest("queue_length must be between 0 and 1000000", param="queue_length")


@dataclass(frozen=True)
class Goodbye:
    """A worker says that it takes no more requests, and for how many seconds it still finishes those it has."""

    worker_name: str
    drain_s: float = WorkerTimings.drain_s

    def __post_init__(self) -> None:
        if not (math.isfinite(self.drain_s) and self.drain_s >= 0):
            raise BadRequest("drain_s must be a number of seconds, at least 0", param="drain_s")


@dataclass(frozen=True)
class WorkerName:
    """A worker by its address, which holds its line, or after which somebody asks."""

    worker_name: str


@dataclass(frozen=True)
class Waiting:
    """A client has been waiting for this worker's next words; `begun` when some have come already."""

    worker_name: str
    begun: bool = False


@dataclass(frozen=True)
class Known:
    """Whether the controller knows the worker, or where asked so, expects it to answer. One that is forgotten
    registers again."""

    exist: bool


@dataclass(frozen=True)
class AddressQuery:
    """Which worker serves `model`? Not those in `exclude`, which have just failed the one who asks."""

    model: str
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.exclude) > 1000:
            raise BadRequest("exclude takes at most 1000 addresses", param="exclude")


@dataclass(frozen=True)
class WorkerAddress:
    address: str


@dataclass(frozen=True)
class ModelNames:
    models: tuple[str, ...]


@dataclass(frozen=True)
class ModelCard:
    """A model that is served now, and by how many workers."""

    info: ModelInfo
    workers: int


@dataclass(frozen=True)
class ListedWorker:
    """A worker as the controller knows it; `silent_s` ago it was last heard of, which is `late` when it should have
    told more meanwhile."""

    worker_name: str
    status: WorkerStatus
    silent_s: float
    late: bool = False


@dataclass(frozen=True)
class WorkerList:
    workers: tuple[ListedWorker, ...]


@dataclass(frozen=True)
class Load:
    """How busy a model is now: at a worker with requests, at a controller with those it passes on."""

    model: str
    running: int
    waiting: int = 0
    workers: int | None = None


def check_address(address: str) -> None:
    """Raise BadRequest unless this is `http(s)://HOST[:PORT]` of a machine that can be a worker.

    Link-local addresses are refused since cloud machines keep their credentials there; spellings of numbers
    that only some resolvers understand (`http://2130706433`, `0x7f.1`) are refused with them.
    """
    problem = _address_problem(address)
    if problem:
        raise BadRequest(f"worker address {address[:200]!r} {problem}", param="worker_name")


def _is_unicode(value: object) -> bool:
    """False for half a surrogate pair, which no answer could be written with."""
    return not any("\ud800" <= char <= "\udfff" for char in str(value))


def _address_problem(address: str) -> str | None:
    if len(address) > MAX_NAME_CHARS or not address.isascii() or not address.isprintable() or "\\" in address:
        return "is too long or has characters that no address has"
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port
    except ValueError:
        return "cannot be read as http://HOST:PORT"
    if url.scheme not in ("http", "https") or not host or port == 0:
        return "must be http://HOST:PORT or https://HOST:PORT"
    if url.username is not None or url.path or url.query or url.fragment or " " in address:
        return "must be only http://HOST:PORT, without user, path or query"
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        last = host.rstrip(".").rsplit(".", 1)[-1]
        return "has a host that is neither a name nor a plain IP address" if last[:1].isdigit() else None
    number = getattr(number, "ipv4_mapped", None) or number
    never = number.is_link_local or number.is_multicast or number.is_unspecified or number.is_reserved
    if never and not number.is_loopback:
        return "is at an address where no worker can be"
    return None


# The answer of /v1/models, ours and other servers'.


def write_models(cards: Sequence[ModelCard], created: int) -> dict[str, Any]:
    """OpenAI's list of models; `info` and `workers` are ours, and other clients pass over them."""
    return {"object": "list", "data": [write_model(card, created) for card in cards]}


def write_model(card: ModelCard, created: int) -> dict[str, Any]:
    return {
        "id": card.info.name,
        "object": "model",
        "created": created,
        "owned_by": "llava-serve",
        "info": _INFO.dump_python(card.info),
        "workers": card.workers,
    }


def read_models(body: object) -> tuple[ModelCard, ...]:
    """The cards in a list of models, sorted by name. Another server's models have only their names to show.

    Raises ValueError when the body is no such list.
    """
    listed = _LISTED.validate_python(body)
    cards = [_card(entry) for entry in listed.data]
    return tuple(sorted(cards, key=lambda card: card.info.name))


@dataclass(frozen=True)
class _Entry:
    id: str
    info: Any = None
    workers: int = 1
    max_model_len: int | None = None
    """vLLM's name of the context length."""


@dataclass(frozen=True)
class _Listed:
    data: list[_Entry]


def _card(entry: _Entry) -> ModelCard:
    try:
        return ModelCard(_INFO.validate_python(entry.info), entry.workers)
    except ValidationError:
        return ModelCard(ModelInfo(entry.id, engine="openai", context_length=entry.max_model_len or 0), entry.workers)


_INFO = TypeAdapter(ModelInfo)
_LISTED = TypeAdapter(_Listed)
