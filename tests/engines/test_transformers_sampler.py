"""Each request of a batch draws by its own rules."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from llava_core.engines.transformers.sampler import Draw, Sampler
from llava_core.types import Sampling

VOCABULARY = 2000
SAMPLER = Sampler([0], torch.device("cpu"))


def logits_of(*probabilities: float) -> torch.Tensor:
    """Logits with these probabilities for ids 1, 2, …; the rest is all but impossible."""
    row = torch.full((1, VOCABULARY), -60.0)
    row[0, 1 : 1 + len(probabilities)] = torch.tensor(probabilities).log()
    return row


def drawn(logits: torch.Tensor, times: int = 2000, **sampling: object) -> Counter[int]:
    draw = Draw(Sampling(**{"temperature": 1.0, "seed": 1, **sampling}), frozenset({3}))  # pyright: ignore[reportArgumentType]
    return Counter(SAMPLER.draw(logits.clone(), [draw])[0].token for _ in range(times))


def test_tokens_are_drawn_in_proportion() -> None:
    counts = drawn(logits_of(0.7, 0.2, 0.1))
    assert counts[1] / 2000 == pytest.approx(0.7, abs=0.04)
    assert counts[3] / 2000 == pytest.approx(0.1, abs=0.03)


def test_low_temperature_sharpens_and_a_tiny_one_is_greedy() -> None:
    assert drawn(logits_of(0.6, 0.4), temperature=0.1)[1] > 1900
    assert drawn(logits_of(0.6, 0.4), 50, temperature=1e-9) == {1: 50}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    assert set(drawn(logits_of(0.5, 0.3, 0.2), top_p=0.5)) == {1}
    assert set(drawn(logits_of(0.5, 0.3, 0.2), top_p=0.51)) == {1, 2}
    assert set(drawn(logits_of(0.5, 0.3, 0.2), 50, top_p=0.0)) == {1}


def test_top_p_reaches_beyond_the_first_candidates_where_the_distribution_is_flat() -> None:
    assert len(drawn(torch.zeros(1, VOCABULARY), 3000, top_p=0.9)) > 1000


def test_top_k_and_min_p_cut_the_tail() -> None:
    assert set(drawn(logits_of(0.5, 0.3, 0.2), top_k=2)) == {1, 2}
    assert set(drawn(logits_of(0.5, 0.3, 0.2), min_p=0.5)) == {1, 2}


def test_forbidden_ids_are_never_drawn_whatever_their_bias() -> None:
    assert 0 not in drawn(torch.zeros(1, VOCABULARY), 500, logit_bias={0: 100.0})


def test_a_bias_decides() -> None:
    assert drawn(logits_of(0.9, 0.1), 20, logit_bias={2: 100.0}) == {2: 20}
    assert 1 not in drawn(logits_of(0.9, 0.1), 200, logit_bias={1: -100.0})


def test_presence_and_frequency_penalties_wear_a_token_out() -> None:
    draw = Draw(Sampling(temperature=0, frequency_penalty=1.0), frozenset())
    tokens = [SAMPLER.draw(logits_of(0.8, 0.2), [draw])[0].token for _ in range(4)]
    assert tokens == [1, 1, 2, 1]
    draw = Draw(Sampling(temperature=0, presence_penalty=2.0), frozenset())
    assert [SAMPLER.draw(logits_of(0.8, 0.2), [draw])[0].token for _ in range(2)] == [1, 2]


def test_an_answer_does_not_end_before_its_least_tokens_or_at_all_when_told_so() -> None:
    draw = Draw(Sampling(temperature=0, min_tokens=3), frozenset({1}))
    assert [SAMPLER.draw(logits_of(0.8, 0.2), [draw])[0].token for _ in range(4)] == [2, 2, 1, 1]
    draw = Draw(Sampling(temperature=0, ignore_eos=True), frozenset({1}))
    assert [SAMPLER.draw(logits_of(0.8, 0.2), [draw])[0].token for _ in range(4)] == [2] * 4


def test_a_seed_gives_the_same_tokens_alone_and_among_others() -> None:
    torch.manual_seed(0)
    rows = torch.randn(12, VOCABULARY)

    def run(company: int) -> list[int]:
        mine = Draw(Sampling(temperature=1.0, top_p=0.9, seed=5), frozenset())
        others = [Draw(Sampling(temperature=0.5 + n / 10, seed=n), frozenset()) for n in range(company)]
        found = []
        for row in rows:
            batch = torch.stack([row, *torch.randn(company, VOCABULARY)])
            found.append(SAMPLER.draw(batch, [mine, *others])[0].token)
        return found

    assert run(0) == run(1) == run(7)


def test_the_reported_log_probabilities_are_the_models_own() -> None:
    draw = Draw(Sampling(temperature=1.0, seed=1, top_k=1, logprobs=2, logit_bias={2: 5.0}), frozenset())
    result = SAMPLER.draw(logits_of(0.5, 0.3, 0.2), [draw])[0]
    assert result.token == 2
    assert result.logprob == pytest.approx(torch.tensor(0.3).log().item(), abs=1e-4)
    assert [token for token, _ in result.top] == [1, 2]
