"""Random tokens for several rows at once: all on the device, so that one answer from it tells all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava_core.engines.transformers.transfer import sent
from llava_core.types import Sampling

_FIRST_CANDIDATES = 256


@dataclass(frozen=True)
class Rules:
    """How each row is drawn: columns (rows, 1) on the device. Rows with a filter (top-k, top-p, min-p) come first."""

    rows: torch.Tensor
    """Which rows of the logits these are: (rows,)"""
    in_order: bool
    """Whether these are rows 0, 1, 2…"""
    filtered: int
    counts: bool
    """Whether any row has a top-k, the filter that costs most."""
    uniform: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)


def finest_dtype(device: torch.device) -> torch.dtype:
    """Doubles, except on MPS, which has none: there, too, the same seed gives the same answer, only that a random
    number next to the border of two tokens may fall on the other side of it."""
    return torch.float32 if device.type == "mps" else torch.float64


def has_filter(sampling: Sampling) -> bool:
    return sampling.top_p < 1.0 or bool(sampling.top_k) or bool(sampling.min_p)


def rules_on(device: torch.device, rows: Sequence[tuple[int, float, Sampling]]) -> Rules:
    """From row, random number and request of each, those with a filter first: one copy to the device."""
    numbers = [
        (row, uniform, sampling.temperature, sampling.top_k or 0, sampling.top_p, sampling.min_p)
        for row, uniform, sampling in rows
    ]
    there = sent(torch.tensor(numbers, dtype=finest_dtype(device)), device)
    index, uniform, temperature, top_k, top_p, min_p = there.split(1, dim=1)
    filtered = sum(has_filter(sampling) for _, _, sampling in rows)
    return Rules(
        rows=index[:, 0].long(),
        in_order=[row for row, _, _ in rows] == list(range(len(rows))),
        filtered=filtered,
        counts=any(sampling.top_k for _, _, sampling in rows),
        uniform=uniform,
        temperature=temperature.float(),
        top_k=top_k.long(),
        top_p=top_p.float(),
        min_p=min_p.float(),
    )


def choose(
    logits: torch.Tensor, likeliest: torch.Tensor, rules: Rules, *, sort_all: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens after temperature, top-k, top-p and min-p, in transformers' order, and whether each is sure: where the
    filters keep more than the likeliest candidates, `sort_all` must look through the whole vocabulary. `likeliest` is
    the greedy token of each row of the logits."""
    if not rules.in_order or len(rules) < len(logits):
        logits, likeliest = logits[rules.rows], likeliest[rules.rows]
    # The highest logit becomes 0 first, so that a tiny temperature cannot overflow.
    highest = logits.gather(1, likeliest[:, None])
    probabilities = torch.softmax((logits - highest) / rules.temperature, dim=-1)
    count, tokens = rules.filtered, list[torch.Tensor]()
    sure = torch.ones(len(rules), dtype=torch.bool, device=logits.device)
    if count:
        head = probabilities[:count]
        if sort_all:
            values, ids = head.sort(dim=-1, descending=True, stable=True)
        else:
            values, ids = head.topk(min(_FIRST_CANDIDATES, head.shape[-1]), dim=-1)
        kept, covered = _kept(values, rules)
        if values.shape[-1] < head.shape[-1]:
            sure[:count] = covered
        tokens.append(ids.gather(1, _invert(kept, rules.uniform[:count], ids.new_zeros(count, 1)))[:, 0])
    if count < len(rules):
        tokens.append(_invert(probabilities[count:], rules.uniform[count:], likeliest[count:, None])[:, 0])
    return torch.cat(tokens), sure


def _kept(values: torch.Tensor, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
    """Descending probabilities, zero where a filter takes them out; and whether what the filters keep of each row lies
    within these likeliest tokens for sure."""
    top_k, top_p, min_p = (column[: len(values)] for column in (rules.top_k, rules.top_p, rules.min_p))
    smallest = min_p * values[:, :1]
    covered = values[:, -1:] < smallest
    mass: torch.Tensor | float = 1.0
    kept = values
    if rules.counts:
        kept = values.masked_fill((top_k > 0) & (torch.arange(values.shape[-1], device=values.device) >= top_k), 0)
    upto = kept.cumsum(dim=-1)
    if rules.counts:
        # With top-k the remaining mass counts as one; without, `values` may be a head of the whole.
        mass = torch.where(top_k > 0, upto[:, -1:], 1.0)
        covered |= (top_k > 0) & (top_k <= values.shape[-1])
        covered |= (top_p < 1) & (top_k == 0) & (upto[:, -1:] >= top_p)
    else:
        covered |= (top_p < 1) & (upto[:, -1:] >= top_p)
    beyond = (top_p < 1) & (upto - kept >= top_p * mass)
    # The likeliest token stays, whatever is asked.
    beyond[:, 0] = False
    return kept.masked_fill(beyond | (kept < smallest), 0), covered[:, 0]


def _invert(weights: torch.Tensor, uniform: torch.Tensor, likeliest: torch.Tensor) -> torch.Tensor:
    """Index drawn in proportion to the weights of each row, (rows, 1); zero weights are never drawn."""
    bounds = weights.cumsum(dim=-1, dtype=finest_dtype(weights.device))
    at = torch.searchsorted(bounds, uniform * bounds[:, -1:], right=True)
    within = at.clamp(max=weights.shape[-1] - 1)
    lost = (at != within) | (weights.gather(1, within) == 0)
    return torch.where(lost, likeliest, within)
