"""Every limit and every wait, named and with its default; the command-line flags change them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may be, checked before its pixels are decoded. Sizes in bytes and pixels."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 40_000_000
    max_side_ratio: float = 100.0
    max_images: int = 16
    """In one request, over all its turns."""
    kept_pixels: int = 16_777_216
    """A larger picture is scaled down to this once decoded; no model looks at more."""
    kept_pixels_in_all: int = 67_108_864
    """Of one request: where five or more pictures stand together, each is kept a little smaller."""
    decode_processes: int = 2
    decode_memory_bytes: int = 1 << 30
    """Address space of one decoding process."""
    decode_timeout_s: float = 20.0
    allow_hosts: tuple[str, ...] = ()
    """Hosts from which http(s) images may be fetched; none by default."""
    fetch_timeout_s: float = 10.0
    """For the whole of one fetch, redirects included."""
    max_redirects: int = 3


@dataclass(frozen=True)
class RequestLimits:
    """What one request may be before an engine sees it."""

    max_body_bytes: int = 64 * 1024 * 1024
    max_text_chars: int = 400_000
    max_messages: int = 1_000


@dataclass(frozen=True)
class EngineLimits:
    """What one engine takes on."""

    max_running: int = 8
    max_waiting: int = 64
    max_answer_tokens: int = 4096
    max_wait_s: float = 120.0


@dataclass(frozen=True)
class BatchLimits:
    """How an engine that runs the model itself shares one device between requests. None lets it choose by device."""

    step_tokens: int | None = None
    """New tokens in one forward pass; a longer prompt is prefilled in several, so that running answers go on."""
    kv_bytes: int | None = None
    """Memory for the keys and values of running and parked chats; half of what is free after loading."""
    feature_bytes: int = 512 * 1024 * 1024
    """Memory for encoded pictures."""
    prepared_bytes: int = 256 * 1024 * 1024
    """Memory for decoded and preprocessed pictures, which come again with every turn of their chat."""
    speculate: bool = True
    """Whether greedy answers guess ahead from the chat's own words; the answers stay the same."""
    share_between_owners: bool = False
    """Whether one person's prefilled prompt may speed up another's; timing could then tell who asked what."""
    threads: int | None = None
    """Threads of the model on a CPU; the physical cores."""
    prepare_workers: int = 2
    """Threads that render prompts and preprocess pictures."""
    stop_timeout_s: float = 30.0


@dataclass(frozen=True)
class GrammarLimits:
    """What an answer's schema or pattern may cost before its first token."""

    compile_s: float = 15.0
    max_count: int = 10_000
    """The largest repetition or length that it may name; some take time in proportion."""
    cache_bytes: int = 64 * 1024 * 1024
    """Memory for those that were compiled; they come again with every request."""
    max_space: int = 16
    """White space in one place of a JSON answer, so that a model cannot go on with it for ever."""


@dataclass(frozen=True)
class WorkerTimings:
    """Control-plane waits, in seconds. A worker is gone when it was silent for `lease_s`."""

    heartbeat_s: float = 2.0
    late_s: float = 3.0
    """A worker silent for this long gets no request that another can take."""
    lease_s: float = 8.0
    control_timeout_s: float = 5.0
    register_backoff_first_s: float = 0.2
    register_backoff_most_s: float = 1.0
    """So a controller that was restarted has everybody back within this and one try."""
    drain_s: float = 30.0


@dataclass(frozen=True)
class ServerLimits:
    """What a server bears from the other end of a connection before it hangs up; waits in seconds."""

    header_s: float = 10.0
    body_s: float = 20.0
    body_bytes_per_s: int = 32 * 1024
    """A body that keeps up this pace may take longer than `body_s`."""
    send_s: float = 30.0
    """For one event to be taken by the reader."""
    keepalive_s: int = 5
    max_control_body_bytes: int = 256 * 1024
    """For registrations and the like, which hold no pictures."""
    max_held_body_bytes: int = 1024 * 1024 * 1024
    """Of all requests that are read or answered at one time."""


@dataclass(frozen=True)
class ClientTimings:
    """How long a caller waits, in seconds, and how often it tries elsewhere before the first token."""

    connect_s: float = 3.0
    control_s: float = 5.0
    """For the controller's answer to which worker, and to what is served."""
    first_token_s: float = 300.0
    between_tokens_s: float = 60.0
    check_s: float = 1.0
    """Silent for this long, a worker is asked after at the controller."""
    attempts: int = 3


CONTROLLER_PORT = 21001
WORKER_PORT = 21002
PAGE_PORT = 7860
