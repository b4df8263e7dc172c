"""Each request of a batch draws by its own rules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llava_core.engines.transformers import choose
from llava_core.engines.transformers.sampler import Draw, Sampler
from llava_core.engines.transformers.transfer import sent
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


def test_each_of_a_mixed_batch_gets_what_it_asked_for() -> None:
    wanted: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 3, "logprobs": 3},
        {"temperature": 0.0, "logprobs": 0, "logit_bias": {9: 100.0}},
        {"temperature": 0.7, "seed": 4, "top_p": 0.95},
        {"temperature": 0.0, "logprobs": 1, "repetition_penalty": 1.3},
        {"temperature": 1.2, "seed": 5, "top_k": 7, "min_p": 0.01},
    ]
    torch.manual_seed(1)
    rows = 3 * torch.randn(len(wanted), VOCABULARY)

    def draws() -> list[Draw]:
        return [Draw(Sampling(**each), frozenset({3}), frozenset({1, 2})) for each in wanted]

    together = SAMPLER.draw(rows.clone(), draws())
    alone = [SAMPLER.draw(rows[n : n + 1].clone(), [draw])[0] for n, draw in enumerate(draws())]
    assert together == alone
    assert [len(drawn.top) for drawn in together] == [0, 3, 0, 0, 1, 0]
    assert together[2].token == 9
    assert together[2].logprob == pytest.approx(torch.log_softmax(rows[2].index_fill(0, torch.tensor([0]), -1e9), 0)[9])


def test_guesses_count_as_far_as_they_are_right() -> None:
    rows = torch.cat([logits_of(0.1, 0.9), logits_of(0.9, 0.1), logits_of(0.2, 0.8), logits_of(0.3, 0.7)])
    guessing, plain = (Draw(Sampling(temperature=0), frozenset()) for _ in range(2))
    for guesses, found in (((2, 1), [2, 1, 2]), ((2, 2), [2, 1]), ((1, 1), [2])):
        drawn = SAMPLER.draw_on(rows.clone(), [guessing, plain], [guesses, ()])
        assert [[each.token for each in tokens] for tokens in drawn] == [found, [2]]


class Asked(TorchDispatchMode):
    """Counts how often the host waits for a number."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_device_is_waited_for_once_however_many_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    lists: list[int] = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(1) or to_list(tensor))
    many = [
        Draw(
            Sampling(temperature=n / 4, seed=n, top_p=0.9, logprobs=n, min_tokens=5, presence_penalty=0.5),
            frozenset({3}),
        )
        for n in range(8)
    ]
    with Asked() as asked:
        for _ in range(2):
            SAMPLER.draw(12 * torch.randn(8, VOCABULARY), many)
    assert (len(lists), asked.count) == (2, 0)


class NoDoubles(TorchDispatchMode):
    """As MPS: an operation that would give doubles fails."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, list | tuple) else (found,):
            if isinstance(each, torch.Tensor) and each.dtype == torch.float64:
                raise TypeError(f"{func} gives float64, which the MPS framework does not have")
        return found


def test_a_device_without_doubles_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[dict[str, Any]] = [
        {"temperature": 0.0, "logprobs": 2, "repetition_penalty": 1.3},
        {"temperature": 1.0, "seed": 3, "logprobs": 3, "presence_penalty": 0.5},
        {"temperature": 0.7, "seed": 4, "top_p": 0.95, "logit_bias": {VOCABULARY - 1: 3.5}},
        {"temperature": 1.2, "seed": 5, "top_k": 7, "min_p": 0.01, "min_tokens": 4},
    ]
    torch.manual_seed(2)
    steps = [3 * torch.randn(len(wanted), VOCABULARY) for _ in range(8)]

    def run() -> list[Any]:
        draws = [Draw(Sampling(**each), frozenset({3}), frozenset({1, 2})) for each in wanted]
        return [SAMPLER.draw(logits.clone(), draws) for logits in steps]

    usual = run()
    with pytest.raises(TypeError, match="float64"), NoDoubles():
        run()
    of_mps = choose.finest_dtype(torch.device("mps"))
    monkeypatch.setattr(choose, "finest_dtype", lambda device: of_mps)
    with NoDoubles():
        assert run() == usual


def test_doubles_are_kept_where_they_are() -> None:
    assert {choose.finest_dtype(torch.device(name)) for name in ("cpu", "cuda:1")} == {torch.float64}


@pytest.mark.parametrize(("device", "waits"), [("mps", True), ("cuda", False)])
def test_only_cuda_fetches_numbers_while_the_host_goes_on(
    monkeypatch: pytest.MonkeyPatch, device: str, waits: bool
) -> None:
    """For MPS torch would read memory that was freed meanwhile."""
    asked: list[tuple[object, ...]] = []

    def to(numbers: torch.Tensor, where: torch.device, *, non_blocking: bool) -> torch.Tensor:
        asked.append((where.type, not non_blocking))
        return numbers

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda numbers: numbers)
    sent(torch.zeros(3), torch.device(device))
    assert asked == [(device, waits)]
