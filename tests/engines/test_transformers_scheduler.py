"""A step takes decodes first, then chunks of prompts; owners take turns."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event, Thread

from llava_core.engines.transformers.scheduler import FairQueue, Turns


@dataclass(eq=False)
class Row:
    remaining: int
    decoding: bool = False
    owner: str = ""
    encoded: int | None = None

    def ready(self) -> int:
        return self.remaining if self.encoded is None else self.encoded


def shares(rows: list[Row], budget: int) -> list[tuple[int, int]]:
    return [(rows.index(share.sequence), share.count) for share in Turns[Row]().plan(rows, budget, short=budget // 4)]


def steps(rows: list[Row], budget: int, count: int) -> list[list[tuple[int, int]]]:
    """What each step takes, one after another; a prompt that is done leaves."""
    turns: Turns[Row] = Turns()
    taken: list[list[tuple[int, int]]] = []
    for _ in range(count):
        planned = turns.plan([row for row in rows if row.remaining], budget, short=budget // 4)
        taken.append([(rows.index(share.sequence), share.count) for share in planned])
        for share in planned:
            share.sequence.remaining -= share.count
    return taken


def test_running_answers_get_their_token_before_any_prompt_is_prefilled() -> None:
    rows = [Row(1000), Row(1, decoding=True), Row(1, decoding=True)]
    assert shares(rows, 100) == [(1, 1), (2, 1), (0, 98)]


def test_a_long_prompt_pauses_running_answers_for_one_chunk_only() -> None:
    rows = [Row(2928), Row(1, decoding=True)]
    assert sum(count for _, count in shares(rows, 384)) <= 384


def test_a_short_follow_up_goes_before_a_long_prompt_that_came_earlier() -> None:
    assert shares([Row(2928), Row(30)], 384) == [(1, 30), (0, 354)]


def test_long_prompts_go_in_the_order_they_came() -> None:
    assert shares([Row(600), Row(600)], 384) == [(0, 384)]
    assert shares([Row(600), Row(600)], 1000) == [(0, 600), (1, 400)]


def test_owners_take_turns_with_long_prompts_too() -> None:
    rows = [Row(600, owner="a"), Row(600, owner="a"), Row(600, owner="b")]
    assert shares(rows, 1300) == [(0, 600), (2, 600), (1, 100)]


def test_a_prompt_begun_is_finished_and_then_it_is_another_persons_turn() -> None:
    rows = [Row(600, owner="a"), Row(600, owner="a"), Row(600, owner="a"), Row(600, owner="b")]
    assert steps(rows, 300, 8) == [[(at, 300)] for at in (0, 0, 3, 3, 1, 1, 2, 2)]


def test_many_short_prompts_of_one_person_do_not_hold_up_anothers_long_one() -> None:
    rows = [Row(100, owner="a") for _ in range(8)] + [Row(700, owner="b")]
    assert steps(rows, 400, 3) == [[(0, 100), (8, 300)], [(1, 100), (8, 300)], [(8, 100), (2, 100), (3, 100), (4, 100)]]


def test_many_short_prompts_of_one_person_go_in_turns_with_anothers_short_one() -> None:
    rows = [Row(100, owner="a") for _ in range(8)] + [Row(100, owner="b")]
    assert steps(rows, 400, 2)[0] == [(0, 100), (8, 100), (1, 100), (2, 100)]


def test_in_brief_steps_short_prompts_one_after_another_leave_half_to_a_long_one() -> None:
    turns: Turns[Row] = Turns()
    long = Row(600, owner="b")
    for _ in range(10):
        rows = [*(Row(90, owner=owner) for owner in "acd"), long]
        for share in turns.plan(rows, 32, short=96):
            share.sequence.remaining -= share.count
    assert long.remaining == 600 - 10 * 16


def test_a_prompt_stops_before_a_picture_that_is_not_encoded_yet() -> None:
    assert shares([Row(600, encoded=35), Row(600, encoded=0)], 384) == [(0, 35)]


def test_a_budget_full_of_answers_still_prefills_a_little() -> None:
    rows = [Row(1, decoding=True), Row(1, decoding=True), Row(50)]
    assert shares(rows, 2) == [(0, 1), (1, 1), (2, 1)]


def test_owners_take_turns_and_keep_their_own_order() -> None:
    queue: FairQueue[Row] = FairQueue()
    for number, owner in enumerate("aaabbc"):
        queue.push(Row(number, owner=owner))
    order = []
    while (row := queue.first()) is not None:
        queue.pop(row)
        order.append(row)
    assert [(row.owner, row.remaining) for row in order] == [("a", 0), ("b", 3), ("c", 5), ("a", 1), ("b", 4), ("a", 2)]


def test_the_queue_may_be_counted_while_requests_come_and_go() -> None:
    queue: FairQueue[Row] = FairQueue()
    for number in range(400):
        queue.push(Row(number, owner=str(number)))
    stop, failures = Event(), []

    def count() -> None:
        try:
            while not stop.is_set():
                assert len(queue) <= 400
        except Exception as error:
            failures.append(error)

    counting = Thread(target=count)
    counting.start()
    for _ in range(4_000):
        row = queue.first()
        assert row is not None
        queue.pop(row)
        queue.push(row)
    stop.set()
    counting.join()
    assert failures == []


def test_one_that_is_not_ready_lets_others_pass_and_keeps_its_place() -> None:
    queue: FairQueue[Row] = FairQueue()
    for number, owner in enumerate("aab"):
        queue.push(Row(number, owner=owner))
    second = queue.first(lambda row: row.remaining != 0)
    assert second is not None
    assert second.remaining == 1
    queue.pop(second)
    assert [row.remaining for row in queue] == [2, 0]
    assert queue.first(lambda row: False) is None


def test_those_who_leave_the_queue_leave_the_others_in_order() -> None:
    queue: FairQueue[Row] = FairQueue()
    for number, owner in enumerate("aab"):
        queue.push(Row(number, owner=owner))
    assert [row.remaining for row in queue.take(lambda row: row.remaining == 0)] == [0]
    assert [row.remaining for row in queue] == [1, 2]
    assert len(queue) == 2
