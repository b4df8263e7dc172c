"""Where the tokens of one request look: attention of the rows behind its first picture, noted as they are computed.

A request to be watched goes through the engine like any other, in chunks between other people's steps. Beside each
layer's own attention, which does not tell, the shares are computed once more from the same queries and keys, and only
the mean over heads is kept: rows x tokens before them for each layer, never all rows with all heads.

The rollout is that of Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020), section 3: half of each
layer is what stays in place, and layers are multiplied. It follows the rows that were noted; a picture's own rows and
what stands before it are taken as the end, so pictures' tokens that mix with each other are not followed further.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from llava_core.engines.transformers.attention import AttentionBackend, AttentionStep
from llava_core.inspection import Looks, PictureLooks, SeenAttention

if TYPE_CHECKING:
    from llava_core.checkpoints.base import Prompt
    from llava_core.engines.transformers.sequence import Sequence
    from llava_core.engines.transformers.step import Work

_ROWS_AT_ONCE = 64


@dataclass(eq=False)
class Watch:
    """Belongs to the model's thread until its request has ended. At most `most_rows` rows are noted, the last ones."""

    answer: int
    """Tokens of the answer at the end of the request's ids."""
    most_rows: int
    places: dict[int, list[int]] = field(default_factory=dict[int, "list[int]"])
    """Positions that were noted, by the first of those that were computed together."""
    shares: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict[tuple[int, int], torch.Tensor])
    """By layer and first position: (rows, tokens up to the last of them), float32 on the CPU."""

    def begins(self, prompt: Prompt) -> int:
        """The first row that is noted; the one before the answer always is."""
        first, length = prompt.images[0], len(prompt.ids)
        return min(length - 1, max(first.start + first.image.tokens, length + self.answer - self.most_rows))

    def wanted(self, sequence: Sequence, start: int, count: int) -> list[int]:
        """Which of these positions are to be noted."""
        begins, last = self.begins(sequence.prompt), sequence.prompt_length - 1
        shown = [(placed.start, placed.start + placed.image.tokens) for placed in sequence.prompt.images]
        return [
            place
            for place in range(max(start, begins), start + count)
            if place == last or not any(first <= place < end for first, end in shown)
        ]

    def note(
        self, layer: int, places: Seq[int], query: torch.Tensor, keys: torch.Tensor, scaling: float, window: int | None
    ) -> None:
        """`query` (heads, places, dim) and the request's `keys` (kv heads, tokens, dim) so far."""
        # A step that failed is computed again, and what it had noted is written over.
        self.places[places[0]] = list(places)
        self.shares[layer, places[0]] = shares(query, keys, places, scaling, window)

    def seen(self, sequence: Sequence, first: int, count: int) -> SeenAttention:
        """What tokens `first` to `first + count` of the answer looked at as they were chosen: each by the row before
        it."""
        rows = [row for start in sorted(self.places) for row in self.places[start]]
        layers = [self._layer(layer, len(rows), rows[-1] + 1) for layer in sorted({layer for layer, _ in self.shares})]
        place = {row: index for index, row in enumerate(rows)}
        begin = sequence.prompt_length - 1
        chosen = [place[begin + token] for token in range(first, first + count)]
        every = [place[begin + token] for token in range(self.answer)]
        flow, usual_flow = rollout(layers, rows, chosen), rollout(layers, rows, every)
        pictures: list[PictureLooks] = []
        for placed in sequence.prompt.images:
            columns = slice(placed.start, placed.start + placed.image.tokens)
            pictures.append(
                PictureLooks(
                    Looks.pack([layer[chosen, columns].mean(0).tolist() for layer in layers]),
                    Looks.pack([flow[columns].tolist()]),
                    Looks.pack(
                        [layer[every, columns].mean(0).tolist() for layer in layers] + [usual_flow[columns].tolist()]
                    ),
                )
            )
        return SeenAttention(first, count, len(layers), tuple(pictures), self.begins(sequence.prompt))

    def _layer(self, layer: int, rows: int, length: int) -> torch.Tensor:
        """(rows, length)"""
        whole = torch.zeros(rows, length)
        at = 0
        for start in sorted(self.places):
            part = self.shares[layer, start]
            whole[at : at + len(part), : part.shape[1]] = part
            at += len(part)
        return whole


def shares(
    query: torch.Tensor, keys: torch.Tensor, places: Seq[int], scaling: float, window: int | None
) -> torch.Tensor:
    """How each row shares out its attention, the mean over heads: (places, tokens)."""
    heads, count, dim = query.shape
    kv_heads, tokens, _ = keys.shape
    grouped = query.view(kv_heads, heads // kv_heads, count, dim)
    keys = keys.to(query.dtype).float()
    position = torch.arange(tokens, device=query.device)
    own = torch.tensor(list(places), device=query.device)
    found: list[torch.Tensor] = []
    for rows, seen in zip(grouped.split(_ROWS_AT_ONCE, dim=2), own.split(_ROWS_AT_ONCE), strict=True):
        scores = torch.einsum("kgnd,ktd->kgnt", rows.float(), keys) * scaling
        hidden = position > seen[:, None]
        if window is not None:
            hidden |= position <= seen[:, None] - window
        scores.masked_fill_(hidden, -torch.inf)
        found.append(scores.softmax(-1).mean((0, 1)))
    return torch.cat(found).cpu()


def rollout(layers: Seq[torch.Tensor], rows: Seq[int], chosen: Seq[int]) -> torch.Tensor:
    """From the mean of the `chosen` rows down through all layers: (tokens,). `layers` are (rows, tokens), and `rows`
    tells the positions of theirs."""
    flow = torch.zeros(layers[0].shape[1])
    at = torch.tensor(list(rows))
    flow[at[list(chosen)]] = 1 / len(chosen)
    for shared in reversed(layers):
        here = flow[at]
        # Half of it stays where it is; elsewhere all of it does.
        flow[at] = here / 2
        flow += here @ shared / 2
    return flow


def watching(step: AttentionStep, backend: AttentionBackend, works: Seq[Work]) -> AttentionStep:
    """The same step, which notes where watched requests look; the step itself where there are none."""
    return step if all(work.sequence.watch is None for work in works) else _WatchedStep(step, backend, works)


class _WatchedStep:
    def __init__(self, step: AttentionStep, backend: AttentionBackend, works: Seq[Work]) -> None:
        self._step = step
        self._backend = backend
        self._watched = list(watched_rows(works))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        out = self._step.attend(layer, query, key, value, scaling, window)
        for rows in self._watched:
            sequence = rows.sequence
            assert sequence.region is not None
            assert sequence.watch is not None
            keys = self._backend.keys(sequence.region, layer, rows.places[-1] + 1)
            sequence.watch.note(layer, rows.places, query[0, :, rows.packed], keys, scaling, window)
        return out


@dataclass(frozen=True)
class WatchedRows:
    """Rows of a packed pass that are to be noted, and which positions of their request they are."""

    sequence: Sequence
    packed: list[int]
    places: list[int]


def watched_rows(works: Seq[Work]) -> list[WatchedRows]:
    found: list[WatchedRows] = []
    begun = 0
    for work in works:
        sequence = work.sequence
        if sequence.watch is not None:
            places = sequence.watch.wanted(sequence, sequence.computed, work.count)
            if places:
                found.append(WatchedRows(sequence, [begun + place - sequence.computed for place in places], places))
        begun += work.rows
    return found
