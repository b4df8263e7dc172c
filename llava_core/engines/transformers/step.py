"""One packed forward pass: the new tokens of all requests end to end, with their pictures' rows in place."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_core.engines.transformers.attention import AttentionBackend, Span
from llava_core.engines.transformers.sequence import Sequence
from llava_core.engines.transformers.transfer import to_device
from llava_core.engines.transformers.watch import watching


@dataclass(frozen=True)
class Work:
    """`count` waiting ids of a request are computed in this step, and after them ids that are only `guessed`."""

    sequence: Sequence
    count: int
    guessed: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return self.count + len(self.guessed)

    @property
    def ends(self) -> bool:
        """Whether the next token can be drawn after it."""
        return self.count == self.sequence.remaining


class Runs(Protocol):
    """Computes packed passes."""

    def run(self, works: Seq[Work]) -> torch.Tensor: ...


class _Rows(list[torch.Tensor]):
    """Feature rows, for families that join a list and for those (InternVL) that expect them joined."""

    def to(self, *args: Any) -> torch.Tensor:
        return torch.cat(self).to(*args)


@dataclass
class _PooledWithDeepstack(BaseModelOutputWithPooling):
    deepstack_features: list[list[torch.Tensor]] | None = None


class Step:
    """Runs packed passes of one model."""

    def __init__(self, model: PreTrainedModel, backend: AttentionBackend) -> None:
        self._model = model
        self._backend = backend
        self._device = model.device
        self._hidden: int = model.config.get_text_config().hidden_size

    def run(self, works: Seq[Work]) -> torch.Tensor:
        """Logits (rows, vocabulary), in the order of `works`: for each that ends its ids one row, and one for each
        guess."""
        spans: list[Span] = []
        ids: list[int] = []
        keep: list[int] = []
        for work in works:
            sequence = work.sequence
            assert sequence.region is not None
            spans.append(Span(sequence.region, len(ids), work.rows, sequence.computed))
            ids += sequence.ids[sequence.computed : sequence.computed + work.count]
            ids += work.guessed
            if work.ends:
                keep.extend(range(len(ids) - 1 - len(work.guessed), len(ids)))
        arguments: dict[str, Any] = {}
        rows = [features for _, features in placed_rows(works)]
        if rows:
            arguments["mm_encoder_outputs"] = {"image": self._pooled(rows)}
        positions = _positions(works)
        there = to_device(ids, positions.flatten(), keep, device=self._device)
        output: Any = self._model(
            input_ids=there[0][None],
            position_ids=there[1].view(positions.shape),
            use_cache=False,
            logits_to_keep=there[2],
            batch=watching(self._backend.begin(spans), self._backend, works),
            **arguments,
        )
        return cast(torch.Tensor, output.logits)[0]

    def _pooled(self, rows: list[torch.Tensor]) -> BaseModelOutputWithPooling:
        """What the model takes for features it would have computed itself."""
        width = rows[0].shape[1]
        if width == self._hidden:
            return BaseModelOutputWithPooling(pooler_output=cast(Any, _Rows(rows)))
        layers = [list(columns) for columns in zip(*(row.split(self._hidden, dim=1) for row in rows), strict=True)]
        return _PooledWithDeepstack(pooler_output=cast(Any, _Rows(layers[0])), deepstack_features=layers[1:])


def _positions(works: Seq[Work]) -> torch.Tensor:
    """(1, T), or (3, 1, T) as soon as one request counts in three dimensions."""
    parts = [work.sequence.positions_of(work.sequence.computed, work.rows) for work in works]
    if any(part.ndim == 2 for part in parts):
        parts = [part if part.ndim == 2 else part.expand(3, -1) for part in parts]
        return torch.cat(parts, dim=1)[:, None]
    return torch.cat(parts)[None]


def placed_rows(works: Seq[Work]) -> list[tuple[int, torch.Tensor]]:
    """Feature rows of the placeholders in this step, in their order, and where in the packed row they stand."""
    rows: list[tuple[int, torch.Tensor]] = []
    begun = 0
    for work in works:
        first = work.sequence.computed
        end = first + work.count
        for placed in work.sequence.prompt.images:
            start = max(first, placed.start)
            stop = min(end, placed.start + placed.image.tokens)
            if start < stop:
                features = work.sequence.features[placed.image.key]
                rows.append((begun + start - first, features[start - placed.start : stop - placed.start]))
        begun += work.rows
    return rows
