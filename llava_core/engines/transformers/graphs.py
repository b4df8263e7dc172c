"""Decode steps as recorded graphs: where each request takes one token, the host only fills in numbers and replays.

A graph is fixed to a number of rows. A step takes the next larger one; the rows that fill it up read and write one
token of scratch memory. What changes from step to step (ids, positions, where keys and values are) are numbers in one
tensor on the device, filled by one copy. Everything else, pictures and prefill, runs as it did.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from transformers import PreTrainedModel

from llava_core.engines.transformers.arena import ArenaRegion
from llava_core.engines.transformers.attention import AttentionStep
from llava_core.engines.transformers.sequence import Sequence
from llava_core.engines.transformers.step import Runs, Work
from llava_core.engines.transformers.transfer import staged

log = logging.getLogger(__name__)

_MOST = 64
"""Graphs that are kept; the least recently used goes first."""


class Recording(Protocol):
    """What a device did once and does again at a word, on the same memory."""

    def replay(self) -> None: ...


class Recorder(Protocol):
    """Runs a function so that it can be replayed; what it returns is written anew by each replay."""

    def record(self, function: Callable[[], torch.Tensor]) -> tuple[Recording, torch.Tensor]: ...


@runtime_checkable
class SingleTokens(Protocol):
    """A backend whose passes of one token per request can be told in tensors alone."""

    @property
    def scratch(self) -> int: ...

    @property
    def store(self) -> torch.Tensor: ...

    def reach(self, longest: int) -> int: ...

    def begin_single(
        self, written: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, reach: int
    ) -> AttentionStep: ...


@dataclass(frozen=True)
class _Graph:
    recording: Recording
    numbers: torch.Tensor
    """(5, rows): ids, positions, where they are written, where their requests start in the arena, and lengths."""
    logits: torch.Tensor


class GraphedStep:
    """Runs packed passes: decode steps as graphs, all others, and whatever cannot be recorded, through `step`."""

    def __init__(
        self,
        step: Runs,
        model: PreTrainedModel,
        backend: SingleTokens,
        recorder: Recorder,
        *,
        most_rows: int,
        three_positions: bool,
    ) -> None:
        """`three_positions`: whether the family counts positions in three dimensions."""
        self._step = step
        self._model = model
        self._backend = backend
        self._recorder = recorder
        self._three = three_positions
        self._sizes = batch_sizes(most_rows)
        self._graphs: OrderedDict[tuple[int, int], _Graph] = OrderedDict()
        self._home = self._where()
        self._works = True

    def run(self, works: Seq[Work]) -> torch.Tensor:
        """Logits as `Step.run` gives them; those of a graph hold until its next replay."""
        graph = self._graph_for(works) if self._works and self._may_replay(works) else None
        if graph is None:
            return self._step.run(works)
        numbers = staged(self._filled(works, graph.numbers.shape[1]), graph.numbers.device)
        graph.numbers.copy_(numbers, non_blocking=True)
        graph.recording.replay()
        return graph.logits[: len(works)]

    def record_all(self, limit_s: float) -> int:
        """Record each size before anybody waits for it, the largest first, until the time is up; what is missing is
        recorded when it comes up. Returns how many there are."""
        begun = time.monotonic()
        with torch.inference_mode():
            for size in reversed(self._sizes):
                if time.monotonic() - begun > limit_s or not self._works:
                    break
                self._recorded(size, self._backend.reach(1))
        count, took = len(self._graphs), time.monotonic() - begun
        log.info("recorded %d of %d sizes of decode steps as graphs in %.1f s", count, len(self._sizes), took)
        return count

    def forget(self) -> None:
        """Drop all graphs and the memory they hold."""
        self._graphs.clear()

    def _may_replay(self, works: Seq[Work]) -> bool:
        """One token for each, all of them answers: nobody prefills, shows a picture or guesses."""
        return len(works) <= self._sizes[-1] and all(
            work.rows == 1 and work.ends and work.sequence.decoding and self._counts_alike(work.sequence)
            for work in works
        )

    def _counts_alike(self, sequence: Sequence) -> bool:
        return (sequence.positions is not None) == self._three

    def _graph_for(self, works: Seq[Work]) -> _Graph | None:
        home = self._where()
        if home != self._home:
            # The model or its memory is elsewhere now: graphs hold addresses.
            self.forget()
            self._home = home
        size = next(size for size in self._sizes if size >= len(works))
        return self._recorded(size, self._backend.reach(max(work.sequence.computed + 1 for work in works)))

    def _recorded(self, size: int, reach: int) -> _Graph | None:
        known = self._graphs.get((size, reach))
        if known is None:
            try:
                known = self._record(size, reach)
            except Exception as error:
                # Some layers (quantised ones) wait for the device, which no recording can.
                self._works = False
                self.forget()
                log.warning("decode steps run without graphs, since recording one failed: %s", error, exc_info=True)
                return None
            self._graphs[size, reach] = known
            if len(self._graphs) > _MOST:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end((size, reach))
        return known

    def _record(self, size: int, reach: int) -> _Graph:
        device = self._backend.store.device
        numbers = self._filled([], size).to(device)

        def compute() -> torch.Tensor:
            ids, positions, written, starts, lengths = numbers
            output: Any = self._model(
                input_ids=ids[None],
                position_ids=positions.expand(3, 1, -1) if self._three else positions[None],
                use_cache=False,
                logits_to_keep=0,
                batch=self._backend.begin_single(written, starts, lengths, reach),
            )
            return cast(torch.Tensor, output.logits)[0]

        recording, logits = self._recorder.record(compute)
        return _Graph(recording, numbers, logits)

    def _filled(self, works: Seq[Work], size: int) -> torch.Tensor:
        """The numbers of each row, then those of rows that only fill up: (5, size) on the host."""
        rows = [_numbers(work.sequence) for work in works]
        scratch = self._backend.scratch
        rows += [(0, 0, scratch, scratch, 1)] * (size - len(rows))
        return torch.tensor(rows, dtype=torch.long).t().contiguous()

    def _where(self) -> tuple[int, ...]:
        weight = next(self._model.parameters())
        output: Any = self._model.get_output_embeddings()
        return weight.data_ptr(), output.weight.data_ptr(), self._backend.store.data_ptr()


class CudaRecorder:
    """CUDA graphs that share one pool of memory, since only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], torch.Tensor]) -> tuple[Recording, torch.Tensor]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # Once by itself: libraries set up what they need, which a recording must not hold.
            function()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile; that must not spoil the recording.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            logits = function()
        return graph, logits


def batch_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4… up to `most`, which is the last."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return tuple(sizes)


def _numbers(sequence: Sequence) -> tuple[int, ...]:
    start, known = cast(ArenaRegion, sequence.region).start, sequence.computed
    return sequence.ids[known], sequence.decoding_position, start + known, start, known + 1
