"""When a group of workers makes way for another one."""

from __future__ import annotations

from orchestrator.config.schema import Workers
from orchestrator.events import CapacityAvailable, NodesDraining
from orchestrator.training.elasticity import ElasticityPolicy
from orchestrator.training.ray_driver_relay import DriverRelay

TWO_OF_FOUR = {0: "a" * 12, 1: "b" * 12}


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def policy(clock: Clock) -> ElasticityPolicy:
    return ElasticityPolicy(Workers(min=1, max=4, scale_up_delay_seconds=10), clock)


def test_a_node_that_is_about_to_go_is_a_reason_at_once() -> None:
    event = policy(Clock()).restart(TWO_OF_FOUR, {"b" * 12: 1007.0}, [], now=1000.0)
    assert event == NodesDraining(("b" * 12,), (1,), 7.0)


def test_a_node_without_our_workers_may_go() -> None:
    assert policy(Clock()).restart(TWO_OF_FOUR, {"c" * 12: 1007.0}, [], now=1000.0) is None


def test_a_node_may_go_without_saying_when() -> None:
    event = policy(Clock()).restart(TWO_OF_FOUR, {"a" * 12: 0}, [], now=1000.0)
    assert event == NodesDraining(("a" * 12,), (0,), None)


def test_room_counts_only_once_it_has_lasted() -> None:
    clock = Clock()
    watch = policy(clock)
    room = [{"CPU": 1.0}, {"CPU": 0.0}]
    assert watch.restart(TWO_OF_FOUR, {}, room, 0) is None
    clock.seconds = 9
    assert watch.restart(TWO_OF_FOUR, {}, [], 0) is None  # gone again: the count starts anew
    clock.seconds = 11
    assert watch.restart(TWO_OF_FOUR, {}, room, 0) is None
    clock.seconds = 20
    assert watch.restart(TWO_OF_FOUR, {}, room, 0) is None
    clock.seconds = 21
    assert watch.restart(TWO_OF_FOUR, {}, room, 0) == CapacityAvailable(1)


def test_no_more_workers_are_asked_for_than_the_job_allows() -> None:
    clock = Clock()
    watch = policy(clock)
    watch.restart(TWO_OF_FOUR, {}, [{"CPU": 64.0}], 0)
    clock.seconds = 10
    assert watch.restart(TWO_OF_FOUR, {}, [{"CPU": 64.0}], 0) == CapacityAvailable(2)
    assert watch.restart(dict(enumerate("abc")), {}, [{"CPU": 64.0}], 0) == CapacityAvailable(1)
    full = dict(enumerate("abcd"))
    assert watch.restart(full, {}, [{"CPU": 64.0}], 0) is None


def test_a_group_that_has_not_begun_is_left_alone() -> None:
    clock = Clock()
    watch = policy(clock)
    watch.restart({}, {}, [{"CPU": 4.0}], 0)
    clock.seconds = 100
    assert watch.restart({}, {}, [{"CPU": 4.0}], 0) is None


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
