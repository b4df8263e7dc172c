"""The controller's table of workers and the choice among them, with time passed in."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from llava_core.config import WorkerTimings
from llava_core.errors import NoWorker, Overloaded, UnknownModel
from llava_core.types import ModelInfo
from serve import worker_pool
from serve.dispatch import Candidate, lottery, shortest_queue
from serve.protocol import Registration, WorkerStatus
from serve.worker_pool import WorkerPool

LEASE = WorkerTimings().lease_s
A, B, C = "http://127.0.0.1:1001", "http://127.0.0.1:1002", "http://127.0.0.1:1003"


def registration(address: str, *names: str, queue: int = 0, capacity: int = 1, speed: float = 1.0) -> Registration:
    infos = tuple(ModelInfo(name, engine="echo", context_length=10) for name in names)
    return Registration(address, WorkerStatus(names, speed, queue, capacity, infos))


def pool_of(*registrations: Registration, now: float = 0.0) -> WorkerPool:
    pool = WorkerPool(dice=random.Random(7))
    for each in registrations:
        pool.register(each, now)
    return pool


def test_a_second_worker_with_the_same_model_adds_to_it():
    pool = pool_of(registration(A, "b"), registration(B, "a"), registration(C, "b"))
    assert [(card.info.name, card.workers) for card in pool.cards(0)] == [("a", 1), ("b", 2)]


def test_a_worker_is_listed_until_it_was_silent_for_its_lease():
    pool = pool_of(registration(A, "a"))
    assert pool.lists(A, LEASE)
    assert not pool.lists(A, LEASE + 0.1)
    assert pool.cards(LEASE + 0.1) == ()
    assert pool.expire(LEASE + 0.1) == (A,)
    assert pool.expire(LEASE + 0.2) == ()


def test_a_heartbeat_renews_the_lease():
    pool = pool_of(registration(A, "a"))
    assert pool.heartbeat(A, 0, LEASE - 1)
    assert pool.lists(A, 2 * LEASE - 2)


def test_a_worker_the_controller_does_not_know_is_told_to_register():
    pool = pool_of()
    assert not pool.heartbeat(A, 0, 0)
    assert pool.register(registration(A, "a"), 0)
    assert pool.heartbeat(A, 0, 1)


def test_registering_again_makes_no_second_entry_and_takes_the_new_model():
    pool = pool_of(registration(A, "old"), registration(A, "new"))
    assert [card.info.name for card in pool.cards(0)] == ["new"]
    assert pool.addresses(0) == (A,)


def test_a_worker_that_says_goodbye_gets_no_more_requests():
    pool = pool_of(registration(A, "a"), registration(B, "a"))
    pool.deregister(A, 0, 30)
    assert {pool.pick("a", 0) for _ in range(5)} == {B}


def test_requests_between_two_heartbeats_are_spread_evenly():
    pool = pool_of(registration(A, "a"), registration(B, "a"), registration(C, "a"))
    assert Counter(pool.pick("a", now) for now in range(6)) == {A: 2, B: 2, C: 2}


def test_the_queue_a_worker_tells_replaces_the_guess():
    pool = pool_of(registration(A, "a"), registration(B, "a"))
    for now in range(4):
        pool.pick("a", now)
    pool.heartbeat(A, 0, 5)
    assert [pool.pick("a", 6), pool.pick("a", 7)] == [A, A]


def test_a_worker_that_failed_the_caller_is_not_given_again():
    pool = pool_of(registration(A, "a"), registration(B, "a"))
    assert {pool.pick("a", now, [A]) for now in range(4)} == {B}
    with pytest.raises(NoWorker, match="failed just now"):
        pool.pick("a", 0, [A, B])


def test_a_late_worker_gets_only_what_no_other_can_take():
    pool = pool_of(registration(A, "a"), registration(B, "a", "b"))
    late = WorkerTimings().late_s + 0.1
    assert pool.heartbeat(A, 100, late)
    assert {pool.pick("a", late) for _ in range(5)} == {A}
    assert pool.pick("b", late) == B
    assert pool.pick("a", late, [A]) == B


def test_a_late_worker_is_waited_for_while_nobody_could_take_over():
    pool = pool_of(registration(A, "a"), registration(B, "a", "b"))
    late = WorkerTimings().late_s + 0.1
    assert pool.is_worth_waiting_for(A, 0, begun=False)
    assert pool.is_worth_waiting_for(A, late, begun=False)
    pool.heartbeat(B, 0, late)
    assert not pool.is_worth_waiting_for(A, late, begun=False)
    assert pool.is_worth_waiting_for(A, late, begun=True)
    assert pool.heartbeat(A, 0, late)
    assert pool.is_worth_waiting_for(B, late + 1, begun=False)
    assert not pool.is_worth_waiting_for(A, late + LEASE + 1, begun=False)


def test_a_worker_that_said_goodbye_is_waited_for_while_it_drains_and_one_that_went_without_is_not():
    pool = pool_of(registration(A, "a"), registration(B, "b"))
    assert pool.deregister(A, 10, 30)
    assert pool.lose(B, 10)
    # Its line ends after the goodbye, which is no news.
    assert not pool.lose(A, 11)
    for begun in (False, True):
        assert pool.is_worth_waiting_for(A, 39, begun=begun)
        assert not pool.is_worth_waiting_for(A, 41, begun=begun)
        assert not pool.is_worth_waiting_for(B, 10, begun=begun)
    pool.register(registration(B, "b"), 50)
    assert pool.is_worth_waiting_for(B, 50, begun=True)
    assert pool.expire(51 + LEASE) == (B,)
    assert not pool.is_worth_waiting_for(B, 51 + LEASE, begun=True)


def test_a_worker_that_may_not_have_registered_yet_is_waited_for():
    assert pool_of().is_worth_waiting_for(C, 0, begun=False)


def test_the_workers_that_went_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_pool, "_REMEMBERED_GONE", 1)
    pool = pool_of(registration(A, "a"), registration(B, "a"))
    pool.lose(A, 0)
    pool.lose(B, 0)
    assert not pool.is_worth_waiting_for(B, 0, begun=True)
    assert len(pool._gone) == 1


def test_an_unknown_model_is_told_apart_from_one_whose_worker_has_gone():
    pool = pool_of(registration(A, "a"), registration(B, "b"))
    with pytest.raises(UnknownModel, match="no worker serves 'x'; running: a, b"):
        pool.pick("x", 0)
    pool.deregister(A, 0, 30)
    with pytest.raises(NoWorker, match="the worker for 'a' has gone"):
        pool.pick("a", 0)
    with pytest.raises(NoWorker, match="no worker is running yet"):
        WorkerPool().pick("a", 0)


def test_the_table_has_a_bound_that_the_dead_do_not_count_towards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_pool, "MAX_WORKERS", 2)
    pool = pool_of(registration(A, "a"), registration(B, "a"))
    with pytest.raises(Overloaded):
        pool.register(registration(C, "a"), 1)
    assert pool.heartbeat(A, 0, LEASE)
    assert pool.register(registration(C, "a"), LEASE + 1)
    assert set(pool.addresses(LEASE + 1)) == {A, C}


def test_all_workers_together_look_like_one():
    pool = pool_of(registration(A, "a", queue=2, capacity=4), registration(B, "b", queue=1, speed=0.5))
    total = pool.total(0)
    assert total is not None
    assert (total.model_names, total.speed, total.queue_length, total.capacity) == (("a", "b"), 1.5, 3, 5)
    assert WorkerPool().total(0) is None


def test_shortest_queue_weighs_capacity_and_speed():
    dice = random.Random(1)
    small = Candidate(A, speed=1, queue_length=1, capacity=1)
    large = Candidate(B, speed=1, queue_length=4, capacity=8)
    fast = Candidate(C, speed=10, queue_length=4, capacity=1)
    assert shortest_queue([small, large], dice) == large
    assert shortest_queue([small, fast], dice) == fast


def test_the_lottery_draws_by_speed():
    dice = random.Random(1)
    slow, fast = Candidate(A, 1, 0, 1), Candidate(B, 3, 0, 1)
    drawn = Counter(lottery([slow, fast], dice).address for _ in range(4000))
    assert drawn[A] + drawn[B] == 4000
    assert 0.7 < drawn[B] / 4000 < 0.8
