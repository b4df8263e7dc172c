"""The store of keys and values: what is reused, what must wait, what goes first."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from llava_core.checkpoints.base import PlacedImage, PreparedImage, Prompt
from llava_core.engines.transformers.attention import KVShape
from llava_core.engines.transformers.attention_cpu import CpuAttention
from llava_core.engines.transformers.attention_padded import PaddedAttention
from llava_core.engines.transformers.kv import Kept, KVStore
from llava_core.engines.transformers.rejoin import rejoin
from llava_core.engines.transformers.sequence import Sequence, common_prefix, virtual_prompt
from llava_core.types import Request, Sampling, user

SHAPE = KVShape(1, 1, 1, 8)
ANY = cast(Any, None)


@pytest.fixture(params=["cpu", "padded"])
def store(request: pytest.FixtureRequest) -> KVStore:
    return make_store(request.param)


def make_store(backend: str = "cpu", tokens: int = 300, **changes: Any) -> KVStore:
    kv_bytes = tokens * 2 * 8 * 4
    made: Any = (
        CpuAttention(SHAPE, kv_bytes=kv_bytes, context_length=200)
        if backend == "cpu"
        else PaddedAttention(SHAPE, kv_bytes=kv_bytes, dtype=torch.float32, device=torch.device("cpu"))
    )
    return KVStore(made, 200, lambda prompt: None, **changes)


def request_of(ids: range | list[int], *, new: int = 10, owner: str = "", images: tuple[Any, ...] = ()) -> Sequence:
    request = Request("m", (user("hi"),), Sampling(max_tokens=new))
    draw = cast(Any, SimpleNamespace(ending=frozenset()))
    return Sequence(request, Prompt(tuple(ids), images), new, draw, ANY, owner=owner)


def run(store: KVStore, sequence: Sequence, answer: list[int] | None = None) -> Sequence:
    """Admit, compute the prompt and the answer, end."""
    assert store.admit(sequence)
    end(store, sequence, answer)
    return sequence


def end(store: KVStore, sequence: Sequence, answer: list[int] | None = None) -> None:
    sequence.ids += answer if answer is not None else [999]
    sequence.computed = len(sequence.ids) - 1
    store.park(sequence, answer_end=len(sequence.ids))


def test_a_follow_up_takes_the_parked_region_over(store: KVStore) -> None:
    first = run(store, request_of(range(50)), [901, 902, 903])
    follow = request_of([*range(50), 901, 902, 903, *range(60, 70)])
    assert store.admit(follow)
    assert (follow.cached, follow.computed) == (52, 52)
    assert store.parked == []
    assert first.region is None


def test_the_last_id_of_a_prompt_is_always_computed_again(store: KVStore) -> None:
    run(store, request_of(range(50)))
    again = request_of(range(50))
    assert store.admit(again)
    assert again.cached == 49


def test_a_branch_with_a_long_tail_is_copied_and_stays(store: KVStore) -> None:
    run(store, request_of(range(30)), list(range(500, 580)))
    retry = request_of(range(30))
    assert store.admit(retry)
    assert retry.cached == 29
    assert len(store.parked) == 1


def test_a_running_request_lends_what_it_has_computed(store: KVStore) -> None:
    first = request_of(range(60))
    assert store.admit(first)
    first.computed = 40
    second = request_of(range(60))
    assert store.admit(second)
    assert second.cached == 40


def test_a_prompt_that_a_neighbour_is_computing_waits_for_it(store: KVStore) -> None:
    first, twin = request_of(range(100)), request_of(range(100))
    stranger = request_of(range(100), owner="another")
    assert store.admit(first)
    assert store.comes_soon(twin)
    assert not store.comes_soon(stranger)
    first.computed = 40
    assert not store.comes_soon(twin)
    first.computed = 0
    store.forget(first)
    assert not store.comes_soon(twin)


def test_what_does_not_fit_beside_the_running_ones_waits_until_they_end(store: KVStore) -> None:
    first, second, third = (request_of([n * 1000 + i for i in range(110)]) for n in range(1, 4))
    assert store.admit(first)
    assert store.admit(second)
    assert not store.admit(third)
    end(store, first)
    assert store.admit(third)


def test_parked_chats_make_room_least_recently_used_first(store: KVStore) -> None:
    for number in range(1, 4):
        run(store, request_of([number * 1000 + i for i in range(60)]))
    run(store, request_of([1000 + i for i in range(61)]))  # the first is used again
    assert store.admit(request_of([9000 + i for i in range(130)]))
    kept = {int(kept.virtual[0]) for kept in store.parked}
    assert 1000 in kept
    assert 2000 not in kept


def test_owners_do_not_see_each_others_chats_unless_sharing_is_allowed() -> None:
    for share, expected in ((False, 0), (True, 49)):
        store = make_store(share_between_owners=share)
        run(store, request_of(range(50), owner="one"))
        other = request_of(range(50), owner="two")
        assert store.admit(other)
        assert other.cached == expected


def test_nothing_is_held_once_all_ended_and_the_parked_are_given_up(store: KVStore) -> None:
    for number in range(5):
        run(store, request_of([number * 100 + i for i in range(40)]))
    failed = request_of([7000 + i for i in range(40)])
    assert store.admit(failed)
    store.forget(failed)
    assert store.running_tokens == 0
    assert store.bytes > 0
    store.clear()
    assert store.bytes == 0
    assert store.admit(request_of([1] * 190, new=100))


def test_an_entry_that_another_goes_on_from_is_not_kept_twice(store: KVStore) -> None:
    run(store, request_of(range(30)), list(range(500, 580)))
    retry = request_of([*range(30), *range(500, 530)])
    run(store, retry, [600])
    longer = run(store, request_of([*range(30), *range(500, 530), 600, 601]), [700, 701])
    assert longer.cached > 50
    assert sum(1 for kept in store.parked if int(kept.virtual[60]) == 600) == 1


def test_parked_chats_go_when_the_machine_runs_out_of_memory() -> None:
    left = [2]

    def short() -> bool:
        left[0] -= 1
        return left[0] >= 0

    store = make_store()
    for number in range(3):
        sequence = request_of([number * 1000 + i for i in range(40)])
        assert store.admit(sequence)
        store.is_short = short if number == 2 else store.is_short
        end(store, sequence)
    assert [int(kept.virtual[0]) for kept in store.parked] == [2000]


def picture(start: int, key: str, tokens: int = 20) -> PlacedImage:
    return PlacedImage(start, PreparedImage(key, {}, tokens))


def test_the_same_words_about_another_picture_match_up_to_the_picture_only(store: KVStore) -> None:
    ids = [*range(20), *[7] * 20, *range(40, 60)]
    run(store, request_of(ids, images=(picture(20, "cat"),)))
    same = request_of([*ids, 1], images=(picture(20, "cat"),))
    other = request_of([*ids, 1], images=(picture(20, "dog"),))
    assert store.admit(other)
    assert other.cached == 20
    assert store.admit(same)
    assert same.cached == 60


def test_pictures_have_virtual_ids_of_their_own() -> None:
    ids = (1, *[7] * 20, 2)
    one, two = (virtual_prompt(Prompt(ids, (picture(1, key),))) for key in ("cat", "dog"))
    assert common_prefix(one, two) == 1
    assert (one[1:21] < 0).all()
    assert one[21] == 2


@dataclass(eq=False)
class Words:
    """A vocabulary where one text has several spellings: 1 "a", 2 "b", 3 "ab", 4 " "."""

    def decode(self, ids: list[int]) -> str:
        return "".join({1: "a", 2: "b", 3: "ab", 4: " "}.get(token, f"<{token}>") for token in ids)


def kept_of(ids: list[int], *answers: tuple[int, int]) -> Kept:
    return Kept("", virtual_prompt(Prompt(tuple(ids))), len(ids), ANY, answers)


def test_an_answer_spelled_otherwise_gets_back_the_ids_it_was_drawn_with() -> None:
    kept = kept_of([50, 51, 1, 2, 1, 2], (2, 6))
    joined = rejoin(Prompt((50, 51, 3, 3, 60, 61), (picture(5, "cat", 1),)), kept, Words().decode)
    assert joined.ids == (50, 51, 1, 2, 1, 2, 60, 61)
    assert joined.images[0].start == 7


def test_a_blank_that_the_template_puts_before_an_answer_does_not_matter() -> None:
    joined = rejoin(Prompt((50, 4, 4, 3, 60)), kept_of([50, 4, 1, 2], (1, 4)), Words().decode)
    assert joined.ids == (50, 4, 1, 2, 60)


def test_an_edited_answer_stays_as_it_was_written() -> None:
    prompt = Prompt((50, 51, 2, 3, 60))
    assert rejoin(prompt, kept_of([50, 51, 1, 2, 1, 2], (2, 6)), Words().decode) is prompt


def test_every_answer_of_a_long_chat_is_rejoined_in_order() -> None:
    kept = kept_of([50, 1, 2, 51, 1, 2, 52], (1, 3), (4, 6))
    joined = rejoin(Prompt((50, 3, 51, 3, 52, 53)), kept, Words().decode)
    assert joined.ids == (50, 1, 2, 51, 1, 2, 52, 53)
