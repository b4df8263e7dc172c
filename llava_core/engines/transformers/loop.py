"""The one thread that owns the model: admit, encode, step, emit, until it is told to stop."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from llava_core.checkpoints.base import TokenFacts
from llava_core.config import EngineLimits
from llava_core.engines.transformers.encode import Encoder
from llava_core.engines.transformers.kv import KVStore
from llava_core.engines.transformers.pace import Pace
from llava_core.engines.transformers.sampler import Drawn, Sampler
from llava_core.engines.transformers.scheduler import FairQueue, Turns
from llava_core.engines.transformers.sequence import Sequence
from llava_core.engines.transformers.step import Runs, Work
from llava_core.engines.transformers.threads import use_threads
from llava_core.errors import DevicePoisoned, EngineFailure, LlavaError, OutOfMemory, Overloaded
from llava_core.types import Chunk, FinishReason, TokenLogprob

log = logging.getLogger(__name__)

Event = tuple[Sequence, Chunk | LlavaError]
Deliver = Callable[[list[Event]], None]


@dataclass(frozen=True)
class Parts:
    """What a loop works with; made once by the engine."""

    step: Runs
    store: KVStore
    encoder: Encoder
    sampler: Sampler
    facts: TokenFacts
    token_text: Callable[[int], str]
    free_memory: Callable[[], None]
    """Give up what can be computed again, after the device ran out of memory."""


class ModelLoop:
    """`submit` and `cancel` may be called from any thread; `deliver` is called from the model thread once a step."""

    def __init__(
        self,
        parts: Parts,
        limits: EngineLimits,
        *,
        max_running: int,
        budget: int,
        pace: Pace | None,
        guess_rows: int,
        threads: int | None = None,
        deliver: Deliver,
    ) -> None:
        """A step takes at most `budget` tokens, and while answers run it prefills no more than `pace` allows.
        It guesses ahead while it has no more than `guess_rows` rows. The model's thread computes with `threads` on a
        CPU."""
        self._parts = parts
        self._limits = limits
        self._max_running = max_running
        self._budget = budget
        self._pace = pace
        self._guess_rows = guess_rows
        self._threads = threads
        self._deliver = deliver
        self._wake = threading.Condition()
        self._inbox: list[Sequence] = []
        self._stopping = False
        self._queue: FairQueue[Sequence] = FairQueue()
        self._turns: Turns[Sequence] = Turns()
        self._running: list[Sequence] = []
        self._events: list[Event] = []
        self._stuck = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue) + len(self._inbox)

    def start(self) -> None:
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        with self._wake:
            if self._stopping:
                raise EngineFailure("the engine is shutting down; ask another worker", request_id=sequence.request.id)
            self._inbox.append(sequence)
            self._wake.notify()

    def cancel(self, sequence: Sequence) -> None:
        sequence.cancelled = True
        with self._wake:
            self._wake.notify()

    def stop(self, timeout_s: float) -> None:
        """End all requests and the thread; blocks until it is gone."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        if self._threads is not None:
            use_threads(self._threads)
        with torch.inference_mode():
            while self._wait():
                try:
                    self._turn()
                except Exception as error:
                    # A step isolates the requests' own failures; this is ours, and the engine must live on.
                    log.exception("the model loop failed; ending its %d requests", len(self._running))
                    for sequence in list(self._running):
                        self._fail(sequence, error)
                self._flush()
        for sequence in [*self._running, *self._queue, *self._inbox]:
            self._events.append((sequence, EngineFailure("the engine is shutting down; ask another worker")))
        self._parts.encoder.stop()
        self._parts.store.clear()
        self._flush()

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False when the thread must end."""
        with self._wake:
            while not (self._stopping or self._inbox or self._running or self._queue):
                self._wake.wait()
            if self._stuck and not self._inbox:
                # All wait for room that nobody holds: impossible by the checks at the door, but never spin.
                self._wake.wait(0.01)
            self._stuck = False
            for sequence in self._inbox:
                self._queue.push(sequence)
            self._inbox.clear()
            return not self._stopping

    def _flush(self) -> None:
        if self._events:
            self._deliver(self._events)
            self._events = []

    def _turn(self) -> None:
        self._drop_left()
        self._admit()
        began = time.perf_counter()
        decoding = sum(sequence.decoding for sequence in self._running)
        budget = self._budget
        if decoding and self._pace is not None:
            budget = min(budget, decoding + self._pace.room())
        encoded = self._encode(max(budget - decoding, 1), hurry=decoding > 0)
        room = budget - encoded if decoding else budget
        planned = self._turns.plan(self._running, room, short=self._budget // 4)
        works = [Work(share.sequence, share.count) for share in planned]
        prefilled = encoded + sum(work.count for work in works if not work.sequence.decoding)
        waited_for = any(work.ends for work in works)
        if works:
            self._execute(self._guessing(works))
        if self._pace is not None:
            self._pace.took(prefilled, began, time.perf_counter(), waited_for=waited_for)

    def _encode(self, budget: int, *, hurry: bool) -> int:
        """Go on with the pictures that are needed next; returns how much it was, as tokens. With `hurry` (answers are
        running) it leaves room in the step's `budget`, so that both together are as long as a step without pictures."""
        prefilling = self._turns.order(sequence for sequence in self._running if not sequence.decoding)
        encoder = self._parts.encoder
        if not prefilling and not encoder.busy:
            return 0
        tokens = budget
        if hurry:
            tokens -= min(sum(sequence.ready() for sequence in prefilling), budget // 2)
        return encoder.advance(prefilling, self._queue, tokens=tokens, hurry=hurry, failed=self._fail)

    def _drop_left(self) -> None:
        """Requests whose reader left, and those that waited too long."""
        self._queue.take(lambda sequence: sequence.cancelled)
        for sequence in [sequence for sequence in self._running if sequence.cancelled]:
            self._leave(sequence)
        latest = time.monotonic() - self._limits.max_wait_s
        for sequence in self._queue.take(lambda sequence: sequence.arrived < latest):
            message = f"no room came free within {self._limits.max_wait_s:g} s; try again a little later"
            self._events.append((sequence, Overloaded(message, retry_after=5.0, request_id=sequence.request.id)))

    def _admit(self) -> None:
        while len(self._running) < self._max_running:
            sequence = self._queue.first(lambda waiting: not self._parts.store.comes_soon(waiting))
            if sequence is None:
                return
            try:
                admitted = self._parts.store.admit(sequence)
            except Exception as error:
                self._queue.pop(sequence)
                self._fail(sequence, error)
                continue
            if not admitted:
                self._stuck = not self._running
                return
            self._queue.pop(sequence)
            sequence.admitted = time.monotonic()
            self._running.append(sequence)

    def _execute(self, works: Seq[Work]) -> None:
        """One pass. If it fails, each request is run alone, so that only the one at fault ends."""
        try:
            logits = self._parts.step.run(works)
        except Exception as error:
            if _is_memory(error):
                self._parts.free_memory()
            if len(works) == 1:
                self._fail(works[0].sequence, error)
                return
            log.warning("a step of %d requests failed (%s); running them one by one", len(works), error)
            for work in works:
                self._execute([work])
            return
        ending: list[Work] = []
        for work in works:
            if work.ends:
                ending.append(work)
            else:
                work.sequence.computed += work.count
        if ending:
            self._draw(logits, ending)

    def _guessing(self, works: list[Work]) -> list[Work]:
        """The works of a step, with guesses where few requests decode: a few rows more cost such a step nothing."""
        decoding = [work for work in works if work.sequence.decoding]
        most = self._guess_rows // len(decoding) - 1 if decoding else 0
        if most < 1:
            return works
        guessing: list[Work] = []
        for work in works:
            sequence = work.sequence
            if sequence.decoding and sequence.lookup is not None:
                guessed = sequence.lookup.guess(sequence.ids, min(most, sequence.max_new - sequence.produced - 1))
                work = Work(sequence, work.count, guessed)
            guessing.append(work)
        return guessing

    def _draw(self, logits: torch.Tensor, works: Seq[Work]) -> None:
        """`logits` hold a row for each guess of each request and one more."""
        draws = [work.sequence.draw for work in works]
        try:
            drawn = self._parts.sampler.draw_on(logits, draws, [work.guessed for work in works])
        except Exception as error:
            if len(works) == 1:
                self._fail(works[0].sequence, error)
                return
            for work, rows in zip(works, logits.split([1 + len(work.guessed) for work in works]), strict=True):
                self._draw(rows, [work])
            return
        for work, tokens in zip(works, drawn, strict=True):
            sequence = work.sequence
            if work.guessed and sequence.lookup is not None:
                sequence.lookup.told(len(work.guessed), len(tokens) - 1)
            computed = sequence.computed + work.count
            for place, token in enumerate(tokens):
                # Keys and values of a right guess are there already; those of wrong ones are written over.
                sequence.computed = computed + place
                self._take(sequence, token)
                if sequence not in self._running:
                    break

    def _take(self, sequence: Sequence, drawn: Drawn) -> None:
        """A new token of one request: its text goes out, and it may be the last."""
        sampling = sequence.request.sampling
        if sequence.first is None:
            sequence.first = time.monotonic()
        may_end = sequence.produced + 1 >= sampling.min_tokens
        sequence.ids.append(drawn.token)
        ends = drawn.token in sequence.draw.ending and not sampling.ignore_eos
        finish: FinishReason | None = None
        text = ""
        if ends:
            finish = "stop"
        else:
            text = sequence.detokenizer.push(drawn.token, may_stop=may_end)
            if sequence.detokenizer.stopped:
                finish = "stop"
            elif sequence.produced >= sequence.max_new:
                finish = "length"
        logprobs = self._logprobs(drawn) if not ends else ()
        if finish is None:
            if text or logprobs:
                self._events.append((sequence, Chunk(text, logprobs=logprobs, token_ids=sequence.untold())))
            return
        text += sequence.detokenizer.finish()
        if sequence.detokenizer.stopped:
            finish = "stop"
        end = Chunk(text, finish, sequence.usage(), logprobs, token_ids=sequence.untold(), phases=sequence.phases())
        self._events.append((sequence, end))
        self._running.remove(sequence)
        self._parts.store.park(sequence, answer_end=len(sequence.ids) - ends)

    def _logprobs(self, drawn: Drawn) -> tuple[TokenLogprob, ...]:
        if drawn.logprob is None:
            return ()
        text = self._parts.token_text
        top = tuple((token, text(token), logprob) for token, logprob in drawn.top)
        return (TokenLogprob(drawn.token, text(drawn.token), drawn.logprob, top),)

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._parts.store.park(sequence, answer_end=len(sequence.ids))

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End one request with an error of its own."""
        if sequence in self._running:
            self._running.remove(sequence)
        self._parts.store.forget(sequence)
        self._events.append((sequence, _as_llava_error(error, sequence)))


def _is_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


def _is_poison(error: Exception) -> bool:
    """After such an error everything that this process asks of the device fails."""
    return "CUDA error" in str(error) and not _is_memory(error)


def _as_llava_error(error: Exception, sequence: Sequence) -> LlavaError:
    request_id = sequence.request.id
    if isinstance(error, LlavaError):
        return error
    if _is_memory(error):
        log.warning("request %s: out of memory: %s", request_id, error)
        return OutOfMemory(
            f"the device ran out of memory for this chat of {sequence.prompt_length} tokens; shorten it, use smaller "
            "pictures or try again later",
            retry_after=5.0,
            request_id=request_id,
        )
    log.error("request %s failed", request_id, exc_info=error)
    if _is_poison(error):
        return DevicePoisoned(
            "the device failed, and this worker with it; send the request again", retry_after=5.0, request_id=request_id
        )
    return EngineFailure(
        f"the model failed on this request; the worker's log tells why under {request_id}", request_id=request_id
    )
