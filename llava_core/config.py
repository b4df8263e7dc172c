"""Every limit and every wait, named and with its default; the command-line flags change them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Speculate = Literal["auto", "on", "off"]
Kernel = Literal["auto", "off"]


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

    max_running: int | None = None
    """Requests that run at once; None lets the engine choose by device and memory."""
    max_waiting: int = 64
    max_answer_tokens: int = 4096
    max_wait_s: float = 120.0


@dataclass(frozen=True)
class BatchLimits:
    """How an engine that runs the model itself shares one device between requests. None lets it choose by device."""

    step_tokens: int | None = None
    """New tokens in one forward pass; a longer prompt is prefilled in several, so that running answers go on. None
    lets the engine choose by device, and while answers run by how long its passes take."""
    kv_bytes: int | None = None
    """Memory for the keys and values of running and parked chats."""
    kv_share: float | None = None
    """The same as a share of what is free after loading; without both half on a CPU, 0.85 on a GPU."""
    feature_bytes: int = 512 * 1024 * 1024
    """Memory for encoded pictures."""
    prepared_bytes: int = 256 * 1024 * 1024
    """Memory for decoded and preprocessed pictures, which come again with every turn of their chat."""
    kernel: Kernel = "auto"
    """Whether a decoder's layers may be computed by a kernel that is compiled at the first start, where processor,
    model and compiler allow it."""
    graphs_s: float = 20.0
    """Seconds at the start for recording decode steps as CUDA graphs; what they do not suffice for is recorded when it
    comes up. 0 runs without graphs."""
    speculate: Speculate = "auto"
    """Whether greedy answers guess ahead from the chat's own words: "auto" while so few decode that it costs nothing,
    "on" always. The answers stay the same."""
    share_between_owners: bool = False
    """Whether one person's prefilled prompt and encoded pictures may speed up another's; timing could then tell who
    asked what."""
    threads: int | None = None
    """Threads of the model on a CPU; the physical cores."""
    prepare_workers: int = 2
    """Threads that render prompts and preprocess pictures."""
    stop_timeout_s: float = 30.0


@dataclass(frozen=True)
class InspectLimits:
    """What a look at a model at work may cost it."""

    memory_bytes: int = 128 * 1024 * 1024
    """For where the tokens of one chat looked, layer by layer."""
    max_tokens: int = 512
    """Of an answer that is looked at."""
    max_waiting: int = 4
    """Looks that wait for the one that is taken."""
    answer_s: float = 120.0
    """For all of one look, its way there and back included."""
    max_answer_bytes: int = 32 * 1024 * 1024


@dataclass(frozen=True)
class LiveLimits:
    """The streams in which browsers read answers as they are made."""

    streams: int = 2000
    """At one time; a browser tab needs one, however many of its chats are answered."""
    streams_each: int = 400
    """Of one address, behind which many people may be, or of one name on a page with a login."""
    rooms: int = 100
    """In one stream."""
    ping_s: float = 15.0
    """Between two signs of life while there is nothing to tell."""


@dataclass(frozen=True)
class StatusLimits:
    """How closely the page watches the workers, for all who look together; waits in seconds."""

    poll_s: float = 2.5
    idle_s: float = 600.0
    """So long after the last look it goes on, so that the next one finds its minutes."""
    first_s: float = 10.0
    points: int = 120
    """Of each plot."""
    workers: int = 200
    gone_s: float = 600.0
    """So long a worker that has gone is still named."""


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
    """Control-plane waits, in seconds. A worker is gone when its line to the controller ends, or it was silent for
    `lease_s`."""

    heartbeat_s: float = 0.75
    late_s: float = 1.5
    """A worker silent for this long gets no request that another can take, and is asked whether it lives."""
    probe_s: float = 1.0
    """For its answer; without one, another takes over its running answers too."""
    sweep_s: float = 0.2
    """Between two looks for workers that are late or gone."""
    ping_s: float = 1.0
    """Between two signs of life on a worker's line; a worker that gets none for three times as long registers anew."""
    lease_s: float = 8.0
    control_timeout_s: float = 5.0
    register_backoff_first_s: float = 0.1
    register_backoff_most_s: float = 0.5
    """So a controller that was restarted has everybody back within this and one try."""
    drain_s: float = 30.0


@dataclass(frozen=True)
class ServerLimits:
    """What a server bears from the other end of a connection before it hangs up; waits in seconds."""

    header_s: float = 9.0
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
class UploadLimits:
    """What browsers may upload to the page, beyond what one picture may be."""

    session_bytes: int = 512 * 1024 * 1024
    """Of one browser, or of one name on a page with a login, as long as its files are here."""
    address_bytes: int = 4 * 1024 * 1024 * 1024
    """Of all browsers at one address, where nobody logs in."""
    least_counted_bytes: int = 64 * 1024
    """A file counts as at least this, since files themselves are no more endless than bytes."""
    least_free_bytes: int = 500 * 1024 * 1024
    """On the disk of the uploads; with less nothing more is taken, so that all else on it can still be written."""
    keep_s: float = 86_400.0
    sweep_s: float = 3600.0
    """Between two looks for files that are older."""


@dataclass(frozen=True)
class StoreLimits:
    """How chats are kept: waits in seconds, and what is given up when a database cannot keep up."""

    pause_s: float = 0.4
    """Between two writes; so much of a growing answer is lost when everything is killed."""
    connect_s: float = 5.0
    """For a connection, and for another writer to be done."""
    statement_s: float = 20.0
    read_s: float = 10.0
    """For a list of chats, or one to be opened."""
    retry_first_s: float = 1.0
    retry_most_s: float = 30.0
    """Between two tries at a database that fails."""
    close_s: float = 10.0
    max_unsaved: int = 2000
    """Chats that wait to be written; the one that waits longest is given up for a new one."""
    max_listed: int = 300
    """Chats in one look at the list."""
    most_looks: int = 50
    """At older ones of the list; what is older still is found by its words."""
    max_import_bytes: int = 64 * 1024 * 1024
    sweep_s: float = 3600.0
    """Between two looks for chats that are older than they are kept."""


@dataclass(frozen=True)
class ModerationLimits:
    """What the operator's moderation may take, where there is one."""

    judge_s: float = 10.0
    """For one verdict."""
    remembered: int = 20_000
    """Messages found harmless, which are not judged again with every later turn of their chat."""


@dataclass(frozen=True)
class ArenaLimits:
    """Blind battles and what is rated out of them; waits in seconds."""

    max_open: int = 2000
    """Battles that are remembered while people are at them; the longest unused is forgotten first."""
    max_battles: int = 500_000
    """Votes that count; of more, the latest."""
    max_unwritten: int = 5000
    """Votes that wait for a database to come back."""
    max_reason: int = 2000
    """Characters of what a person says about a vote."""
    long_question: int = 1500
    """Characters of all questions together from which a battle counts as long."""
    fresh_s: float = 5.0
    """Between two looks into the database."""
    read_s: float = 20.0
    write_s: float = 10.0
    retry_s: float = 2.0
    snapshot_s: float = 600.0
    """Between two states of the ratings that are kept."""


@dataclass(frozen=True)
class CompareLimits:
    """Open comparisons."""

    columns: int = 4
    words: int = 40_000
    """Of all answers in which differences are looked for."""
    compare_s: float = 10.0


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
    continuations: int = 3
    """How often an answer that has begun may lose its worker and go on with another."""


@dataclass(frozen=True)
class RetryLimits:
    """How often requests that a worker refused or failed are sent to another one."""

    share: float = 0.2
    """Of the requests that come."""
    reserve: int = 5
    """To begin with, for those who ask seldom."""
    most_saved: float = 50.0


@dataclass(frozen=True)
class BreakerLimits:
    """When a client leaves a worker alone, and for how many seconds."""

    failures: int = 5
    """In a row. One that cannot be reached at all is left alone at once."""
    pause_first_s: float = 0.5
    pause_most_s: float = 30.0
    pause_full_s: float = 0.03
    """For one that only had no room."""
    calm_s: float = 30.0
    """Without trouble for this long, the next pause is the first again."""


CONTROL_PORT = 21000
CONTROLLER_PORT = 21001
WORKER_PORT = 21002
PAGE_PORT = 7860
