"""Draws the next token of every request in a batch, each by its own rules and its own random numbers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from llava_core.engines.transformers.choose import choose, has_filter, rules_on
from llava_core.engines.transformers.constrain import Constraint
from llava_core.engines.transformers.transfer import sent, to_device
from llava_core.types import Sampling

_GREEDY_BELOW = 1e-5


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
    """Draws for one model. `forbidden` ids are never drawn: picture placeholders, ids without a token.

    The device is waited for once, for everything that was drawn.
    """

    def __init__(self, forbidden: Sequence[int], device: torch.device) -> None:
        self._forbidden = torch.tensor(sorted(set(forbidden)), dtype=torch.long, device=device)

    def draw(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[Drawn]:
        """`logits` (requests, vocabulary) -> one token each; the requests' counts are updated."""
        return [drawn[0] for drawn in self.draw_on(logits, draws, [()] * len(draws))]

    def draw_on(
        self, logits: torch.Tensor, draws: Sequence[Draw], guessed: Sequence[Sequence[int]]
    ) -> list[list[Drawn]]:
        """The next tokens of each request: its guesses as far as they are right, then the model's own. `logits` hold a
        row for each guess and one more. Only a greedy request may guess."""
        rows = [draw for draw, guesses in zip(draws, guessed, strict=True) for _ in range(1 + len(guesses))]
        logits = logits.float()
        if any(draw.constraint is not None for draw in draws):
            # A form that cannot be kept ends its request; the others draw again from what they were given.
            logits = logits.clone()
        logits.index_fill_(1, self._forbidden, float("-inf"))
        report = _Report.of(logits, rows)
        shape(logits, rows)
        found = _fetch(logits, rows, report)
        result: list[list[Drawn]] = []
        row = 0
        for draw, guesses in zip(draws, guessed, strict=True):
            right = 0
            while right < len(guesses) and guesses[right] == found[row + right].token:
                right += 1
            drawn = found[row : row + right + 1]
            for each in drawn:
                draw.took(each.token)
            result.append(drawn)
            row += 1 + len(guesses)
        return result


@dataclass(frozen=True)
class _Report:
    """What the model itself thought of the tokens, for the rows whose requests ask."""

    rows: list[int]
    there: torch.Tensor
    """The same on the device."""
    own: torch.Tensor
    """Log-probabilities as the model gave them: (rows, vocabulary)."""
    most: int
    """Likeliest tokens that are told of each row, at most."""

    @classmethod
    def of(cls, logits: torch.Tensor, rows: Sequence[Draw]) -> _Report | None:
        asking = [row for row, draw in enumerate(rows) if draw.sampling.logprobs is not None]
        if not asking:
            return None
        there = to_device(asking, device=logits.device)[0]
        most = max(rows[row].sampling.logprobs or 0 for row in asking)
        return cls(asking, there, torch.log_softmax(logits[there], dim=-1), most)

    def numbers(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        drawn = self.own.gather(1, tokens[self.there][:, None])
        return [drawn, *(self.own.topk(self.most, dim=-1) if self.most else ())]

    def told(self, numbers: list[float], found: list[Drawn], rows: Sequence[Draw]) -> None:
        """Put into `found` what `numbers` became on the host."""
        count = len(self.rows)
        values, ids = numbers[count : count + count * self.most], numbers[count + count * self.most :]
        for place, row in enumerate(self.rows):
            first = place * self.most
            end = first + (rows[row].sampling.logprobs or 0)
            top = tuple((int(token), value) for token, value in zip(ids[first:end], values[first:end], strict=True))
            found[row] = Drawn(found[row].token, numbers[place], top)


def _fetch(logits: torch.Tensor, rows: Sequence[Draw], report: _Report | None) -> list[Drawn]:
    """What each row drew, in one transfer: 32 bits hold log-probabilities as they are, and ids up to 16 million."""
    tokens = likeliest = _likeliest(logits)
    drawing = [row for row, draw in enumerate(rows) if not draw.greedy]
    if not drawing and report is None:
        return [Drawn(token) for token in tokens.tolist()]
    rules = None
    if drawing:
        drawing.sort(key=lambda row: not has_filter(rows[row].sampling))
        rules = rules_on(logits.device, [(row, rows[row].uniform(), rows[row].sampling) for row in drawing])
    numbers: list[float] = []
    for sort_all in (False, True):
        parts = [tokens]
        if rules is not None:
            chosen, sure = choose(logits, likeliest, rules, sort_all=sort_all)
            tokens = likeliest.index_put((rules.rows,), chosen)
            parts = [tokens, sure]
        if report is not None:
            parts += report.numbers(tokens)
        numbers = torch.cat([part.float().flatten() for part in parts]).tolist()
        if all(numbers[len(rows) : len(rows) + len(drawing)]):
            break
    found = [Drawn(int(token)) for token in numbers[: len(rows)]]
    if report is not None:
        report.told(numbers[len(rows) + len(drawing) :], found, rows)
    return found


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    if logits.device.type == "cpu":
        # torch wakes its threads for a row of some thousand numbers, which takes longer than looking at them.
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def shape(logits: torch.Tensor, rows: Sequence[Draw]) -> None:
    """Penalties, biases and forbidden ends, in place; nothing is done where no request has any."""
    repeated, added, biased, ended = (_Entries(logits.shape[-1]) for _ in range(4))
    for row, draw in enumerate(rows):
        sampling = draw.sampling
        if sampling.repetition_penalty != 1.0:
            repeated.add(row, draw.prompt.union(draw.counts), sampling.repetition_penalty)
        if draw.counts and (sampling.presence_penalty or sampling.frequency_penalty):
            presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
            added.add(row, draw.counts, [-presence - frequency * count for count in draw.counts.values()])
        if sampling.logit_bias:
            biased.add(row, sampling.logit_bias, list(sampling.logit_bias.values()))
        if draw.ending and (sampling.ignore_eos or not draw.may_end):
            ended.add(row, draw.ending, float("-inf"))
    steps = (repeated, added, biased, ended)
    if any(step.parts for step in steps):
        columns = [step.columns for step in steps]
        there = sent(torch.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32)), logits.device)
        for step, (rows_there, tokens, amounts) in zip(
            steps, there.split([each.shape[1] for each in columns], 1), strict=True
        ):
            if not step.parts:
                continue
            place = rows_there.long(), tokens.long()
            values = logits[place]
            if step is repeated:
                logits[place] = torch.where(values < 0, values * amounts, values / amounts)
            else:
                logits[place] = values + amounts
    for row, draw in enumerate(rows):
        if draw.constraint is not None:
            draw.constraint.mask(logits[row])


class _Entries:
    """Numbers for some places of the logits; ids beyond the vocabulary have no place."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self.parts: list[np.ndarray] = []

    @property
    def columns(self) -> np.ndarray:
        """Rows, ids and numbers: (3, entries)."""
        return np.concatenate(self.parts, axis=1) if self.parts else np.empty((3, 0))

    def add(self, row: int, tokens: Collection[int], numbers: float | list[float]) -> None:
        part = np.empty((3, len(tokens)))
        part[0] = row
        part[1] = np.fromiter(tokens, np.float64, len(tokens))
        part[2] = numbers
        self.parts.append(part[:, part[1] < self._vocabulary])
