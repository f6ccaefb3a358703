"""When a group of workers makes way for another one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.train import PreemptionInfo

from orchestrator.config.schema import Workers
from orchestrator.events import CapacityAvailable, Event, NodesDraining, WorkersHung, WorkersReplaced
from orchestrator.training import ray_launcher
from orchestrator.training.driver import ControlSignal
from orchestrator.training.elasticity import ElasticityPolicy
from orchestrator.training.ray_driver_relay import DriverRelay
from orchestrator.training.ray_session import nodes_draining


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def policy(clock: Clock) -> ElasticityPolicy:
    return ElasticityPolicy(Workers(min=1, max=4, scale_up_delay_seconds=10), clock)


def test_room_counts_only_once_it_has_lasted() -> None:
    clock = Clock()
    watch = policy(clock)
    room = [{"CPU": 1.0}, {"CPU": 0.0}]
    assert watch.restart(2, room) is None
    clock.seconds = 9
    assert watch.restart(2, []) is None  # gone again: the count starts anew
    clock.seconds = 11
    assert watch.restart(2, room) is None
    clock.seconds = 20
    assert watch.restart(2, room) is None
    clock.seconds = 21
    assert watch.restart(2, room) == CapacityAvailable(1)


def test_no_more_workers_are_asked_for_than_the_job_allows() -> None:
    clock = Clock()
    watch = policy(clock)
    watch.restart(2, [{"CPU": 64.0}])
    clock.seconds = 10
    assert watch.restart(2, [{"CPU": 64.0}]) == CapacityAvailable(2)
    assert watch.restart(3, [{"CPU": 64.0}]) == CapacityAvailable(1)
    assert watch.restart(4, [{"CPU": 64.0}]) is None


def test_a_group_that_has_not_begun_is_left_alone() -> None:
    clock = Clock()
    watch = policy(clock)
    watch.restart(0, [{"CPU": 4.0}])
    clock.seconds = 100
    assert watch.restart(0, [{"CPU": 4.0}]) is None


def test_a_notice_of_ray_train_names_nodes_ranks_and_the_seconds_left() -> None:
    ranks = {"b" * 12: [1], "a" * 12: [0, 2]}
    nodes = ("a" * 12, "b" * 12)
    assert nodes_draining(PreemptionInfo(1_007_000, ranks), 1000) == NodesDraining(nodes, (0, 1, 2), 7.0)
    assert nodes_draining(PreemptionInfo(1_007_000, ranks), 1010) == NodesDraining(nodes, (0, 1, 2), 0.0)
    assert nodes_draining(PreemptionInfo(None, ranks), 1000) == NodesDraining(nodes, (0, 1, 2), None)


def test_a_new_group_replaces_the_one_before() -> None:
    relay = DriverRelay()
    for rank in (0, 1):
        relay.join(rank, 2, "a")
    assert relay.group() == (1, 2, {0: "a", 1: "a"})
    relay.join(1, 2, "b")
    assert relay.group() == (2, 2, {1: "b"})
    relay.join(0, 2, "b")
    relay.join(0, 1, "c")
    assert relay.group() == (3, 1, {0: "c"})


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 8))
def test_a_relay_killed_at_any_moment_knows_its_group_and_the_signal_again(
    sizes: list[int], killed_at: int
) -> None:
    relay, groups_seen, calls = DriverRelay(), 0, 0

    def call() -> DriverRelay:
        nonlocal relay, calls
        relay = DriverRelay() if calls == killed_at else relay
        calls += 1
        return relay

    def driver_polls() -> None:
        nonlocal groups_seen
        call().collect(ControlSignal.RESTART, groups_seen)
        groups_seen = max(groups_seen, relay.group()[0])

    for number, size in enumerate(sizes, 1):
        nodes = {rank: f"node{number}" for rank in range(size)}
        call()
        for rank, node in nodes.items():
            relay.join(rank, size, node)
        known_to_worker_0 = relay.group()
        driver_polls()
        call().exchange([], known_to_worker_0)
        driver_polls()
        assert call().exchange([], known_to_worker_0) in (ControlSignal.RESTART, ControlSignal.CONTINUE)
        driver_polls()
        assert relay.exchange([], known_to_worker_0) is ControlSignal.RESTART
        assert relay.group() == (number, size, nodes)
        assert groups_seen == number


@given(st.integers(1, 4), st.data())
def test_workers_that_hung_are_named_once_when_their_group_is_replaced(
    size: int, data: st.DataObject
) -> None:
    relay = DriverRelay()
    for rank in range(size):
        relay.join(rank, size, f"node{rank}")
    how = data.draw(st.lists(st.sampled_from(["hung", "waited", "failed"]), min_size=size, max_size=size))
    for rank, ended in enumerate(how):
        if ended != "hung":
            relay.leave(rank, 1, ended == "waited")
    named = tuple(rank for rank, ended in enumerate(how) if ended == "hung" and "waited" in how)
    expected = [WorkersHung(named, tuple(f"node{rank}" for rank in named))] if named else []
    assert relay.hung() == expected
    for group in (2, 3):
        for rank in range(size):
            assert relay.join(rank, size, "new") == group
        relay.leave(0, 1, True)  # of the group that was replaced
    assert relay.collect(ControlSignal.CONTINUE, 3)[0] == expected


def test_the_failure_of_a_group_that_was_replaced_ends_nothing() -> None:
    relay = DriverRelay()
    relay.join(0, 1, "a")
    relay.join(0, 1, "b")
    relay.fail("of the old group", 1)
    assert relay.failure() == ""
    relay.fail("of the new group", 2)
    relay.fail("a consequence of it", 2)
    relay.fail("of the old group", 1)
    assert relay.failure() == "of the new group"


def test_a_relay_that_was_killed_after_a_failure_hears_of_it_from_the_driver() -> None:
    relay = DriverRelay()
    relay.join(0, 1, "a")
    relay.fail("not finite", 1)
    known = relay.collect(ControlSignal.CONTINUE, 1)[1]
    relay = DriverRelay()
    relay.collect(ControlSignal.CONTINUE, 1, known)
    assert relay.failure() == "not finite"


def test_a_failure_is_reported_once_although_ray_train_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 100.0
    monkeypatch.setattr(ray_launcher.time, "monotonic", lambda: seconds)
    sent: list[Event] = []
    relay = SimpleNamespace(exchange=SimpleNamespace(remote=sent.extend))
    reports = ray_launcher.FailureReports(relay)
    for _ in range(20):
        reports.after_exception(None, {1: RuntimeError("died")})
        seconds += 0.5
    assert sent == [WorkersReplaced((1,), "RuntimeError: died")]
    reports.after_exception(None, {1: RuntimeError("died"), 0: ValueError("lost\nits peer")})
    assert sent[1:] == [WorkersReplaced((0, 1), "ValueError: its peer")]
    seconds += 20  # another group
    reports.after_exception(None, {1: RuntimeError("died"), 0: ValueError("its peer")})
    assert len(sent) == 3
