"""Draws the next token of every request in a batch, each by its own rules and its own random numbers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from llava_core.engines.transformers.constrain import Constraint
from llava_core.types import Sampling

_GREEDY_BELOW = 1e-5
_FIRST_CANDIDATES = 256


@dataclass(eq=False)
class Draw:
    """How one request draws, and what it drew so far.

    Its random numbers come from its own generator, one per token, so that the same seed gives the same answer
    whatever else is in the batch.
    """

    sampling: Sampling
    ending: frozenset[int]
    """Ids that end the answer; not drawn before `min_tokens`, or at all under `ignore_eos`."""
    prompt: frozenset[int] = frozenset()
    """The prompt's ids, for the repetition penalty."""
    counts: Counter[int] = field(default_factory=Counter[int])
    produced: int = 0
    constraint: Constraint | None = None
    """What form the answer is held to."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.sampling.seed)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < _GREEDY_BELOW

    @property
    def may_end(self) -> bool:
        return self.produced + 1 >= self.sampling.min_tokens

    def uniform(self) -> float:
        return self._random.random()

    def took(self, token: int) -> None:
        self.counts[token] += 1
        self.produced += 1
        if self.constraint is not None:
            self.constraint.took(token)


@dataclass(frozen=True)
class Drawn:
    """A token; with its log-probability and the likeliest ones where the request asked for them."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws for one model. `forbidden` ids are never drawn: picture placeholders, ids without a token."""

    def __init__(self, forbidden: Sequence[int], device: torch.device) -> None:
        self._forbidden = torch.tensor(sorted(set(forbidden)), dtype=torch.long, device=device)

    def draw(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[Drawn]:
        """`logits` (requests, vocabulary) -> one token each; the requests' counts are updated."""
        logits = logits.float()
        if any(draw.constraint is not None for draw in draws):
            # A form that cannot be kept ends its request; the others draw again from what they were given.
            logits = logits.clone()
        logits[:, self._forbidden] = float("-inf")
        raw = self._raw(logits, draws)
        for row, draw in enumerate(draws):
            _shape(logits[row], draw)
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        drawing = [row for row, draw in enumerate(draws) if not draw.greedy]
        if drawing:
            chosen = _choose(logits[drawing], [draws[row] for row in drawing])
            for row, token in zip(drawing, chosen, strict=True):
                tokens[row] = token
        result: list[Drawn] = []
        for row, (draw, token) in enumerate(zip(draws, tokens, strict=True)):
            draw.took(token)
            result.append(_report(token, draw.sampling.logprobs, raw.get(row)))
        return result

    def verify(self, logits: torch.Tensor, draw: Draw, guessed: Sequence[int]) -> list[Drawn]:
        """Greedy tokens of one request: the guesses as far as they are right, then the model's own. `logits` hold a
        row for each guess and one more."""
        logits = logits.float()
        logits[:, self._forbidden] = float("-inf")
        for row in logits:
            _shape(row, draw)
        likeliest: list[int] = logits.argmax(dim=-1).tolist()
        right = 0
        while right < len(guessed) and guessed[right] == likeliest[right]:
            right += 1
        for token in likeliest[: right + 1]:
            draw.took(token)
        return [Drawn(token) for token in likeliest[: right + 1]]

    def _raw(self, logits: torch.Tensor, draws: Sequence[Draw]) -> dict[int, torch.Tensor]:
        """Log-probabilities as the model gave them, of the rows that report some."""
        return {
            row: torch.log_softmax(logits[row], dim=-1)
            for row, draw in enumerate(draws)
            if draw.sampling.logprobs is not None
        }


def _report(token: int, wanted: int | None, raw: torch.Tensor | None) -> Drawn:
    if wanted is None or raw is None:
        return Drawn(token)
    values, ids = raw.topk(wanted) if wanted else (raw[:0], raw[:0].long())
    return Drawn(token, float(raw[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _shape(row: torch.Tensor, draw: Draw) -> None:
    """Penalties, biases and forbidden ends, in place; nothing is done for a request without any."""
    sampling = draw.sampling
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(draw.prompt | set(draw.counts)), device=row.device)
        seen = seen[seen < len(row)]
        values = row[seen]
        row[seen] = torch.where(values < 0, values * sampling.repetition_penalty, values / sampling.repetition_penalty)
    if draw.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = torch.tensor(list(draw.counts), device=row.device)
        counts = torch.tensor(list(draw.counts.values()), device=row.device, dtype=row.dtype)
        row[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(sampling.logit_bias.values()), device=row.device, dtype=row.dtype)
    if draw.ending and (sampling.ignore_eos or not draw.may_end):
        row[torch.tensor(sorted(draw.ending), device=row.device)] = float("-inf")
    if draw.constraint is not None:
        draw.constraint.mask(row)


def _choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Random tokens after temperature, top-k, top-p and min-p, in transformers' order."""
    temperature = torch.tensor([draw.sampling.temperature for draw in draws], device=logits.device)
    # The highest logit becomes 0 first, so that a tiny temperature cannot overflow.
    probabilities = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / temperature[:, None], dim=-1)
    tokens: list[int] = []
    whole = [_unfiltered(draw.sampling) for draw in draws]
    first = probabilities.topk(min(_FIRST_CANDIDATES, probabilities.shape[-1]), dim=-1) if not all(whole) else None
    for row, draw in enumerate(draws):
        uniform = draw.uniform()
        if whole[row] or first is None:
            tokens.append(_invert(probabilities[row], uniform))
            continue
        values, ids = first.values[row], first.indices[row]
        if not _covers(values, draw.sampling):
            values, ids = probabilities[row].sort(descending=True, stable=True)
        kept = _filtered(values, draw.sampling)
        tokens.append(int(ids[_invert(kept, uniform)]))
    return tokens


def _unfiltered(sampling: Sampling) -> bool:
    return sampling.top_p >= 1.0 and not sampling.top_k and not sampling.min_p


def _covers(values: torch.Tensor, sampling: Sampling) -> bool:
    """Whether what the filters keep lies within these likeliest tokens for sure."""
    if sampling.top_k and sampling.top_k <= len(values):
        return True
    if sampling.top_p < 1.0 and not sampling.top_k and float(values.sum()) >= sampling.top_p:
        return True
    return bool(sampling.min_p) and float(values[-1]) < sampling.min_p * float(values[0])


def _filtered(values: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Descending probabilities, zero where a filter takes them out."""
    kept = values.clone()
    if sampling.top_k:
        kept[sampling.top_k :] = 0
    if sampling.top_p < 1.0:
        # With top-k the remaining mass counts as one; without, `values` may be a head of the whole.
        mass = kept.sum() if sampling.top_k else kept.new_ones(())
        before = kept.cumsum(dim=-1) - kept
        kept[before >= sampling.top_p * mass] = 0
        kept[0] = values[0]
    if sampling.min_p:
        kept[kept < sampling.min_p * values[0]] = 0
    return kept


def _invert(weights: torch.Tensor, uniform: float) -> int:
    """Index drawn in proportion to the weights; zero weights are never drawn."""
    bounds = weights.double().cumsum(dim=-1)
    at = int(torch.searchsorted(bounds, uniform * float(bounds[-1]), right=True))
    if at >= len(weights) or float(weights[at]) == 0.0:
        return int(weights.argmax())
    return at
