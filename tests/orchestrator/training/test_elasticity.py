"""When a group of workers makes way for another one."""

from __future__ import annotations

from orchestrator.config.schema import Workers
from orchestrator.training.elasticity import Resizing
from orchestrator.training.ray_driver_channel import Mailbox

TWO_OF_FOUR = {0: "a" * 12, 1: "b" * 12}


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def resizing(clock: Clock) -> Resizing:
    return Resizing(Workers(min=1, max=4, scale_up_delay_seconds=10), clock)


def test_a_node_that_is_about_to_go_is_a_reason_at_once() -> None:
    reason = resizing(Clock()).reason(TWO_OF_FOUR, {"b" * 12: 1007.0}, [], now=1000.0)
    assert reason == "node bbbbbbbb goes in 7 s, with worker 1"


def test_a_node_without_our_workers_may_go() -> None:
    assert resizing(Clock()).reason(TWO_OF_FOUR, {"c" * 12: 1007.0}, [], now=1000.0) == ""


def test_a_node_may_go_without_saying_when() -> None:
    assert (
        resizing(Clock()).reason(TWO_OF_FOUR, {"a" * 12: 0}, [], now=1000.0).endswith("goes, with worker 0")
    )


def test_room_counts_only_once_it_has_lasted() -> None:
    clock = Clock()
    watch = resizing(clock)
    room = [{"CPU": 1.0}, {"CPU": 0.0}]
    assert watch.reason(TWO_OF_FOUR, {}, room, 0) == ""
    clock.seconds = 9
    assert watch.reason(TWO_OF_FOUR, {}, [], 0) == ""  # gone again: the count starts anew
    clock.seconds = 11
    assert watch.reason(TWO_OF_FOUR, {}, room, 0) == ""
    clock.seconds = 20
    assert watch.reason(TWO_OF_FOUR, {}, room, 0) == ""
    clock.seconds = 21
    assert watch.reason(TWO_OF_FOUR, {}, room, 0) == "there is room for 1 more worker"


def test_no_more_workers_are_asked_for_than_the_job_allows() -> None:
    clock = Clock()
    watch = resizing(clock)
    watch.reason(TWO_OF_FOUR, {}, [{"CPU": 64.0}], 0)
    clock.seconds = 10
    assert watch.reason(TWO_OF_FOUR, {}, [{"CPU": 64.0}], 0) == "there is room for 2 more workers"
    full = dict(enumerate("abcd"))
    assert watch.reason(full, {}, [{"CPU": 64.0}], 0) == ""


def test_a_group_that_has_not_begun_is_left_alone() -> None:
    clock = Clock()
    watch = resizing(clock)
    watch.reason({}, {}, [{"CPU": 4.0}], 0)
    clock.seconds = 100
    assert watch.reason({}, {}, [{"CPU": 4.0}], 0) == ""


def test_a_new_group_replaces_the_one_before() -> None:
    mailbox = Mailbox()
    for rank in (0, 1):
        mailbox.join(rank, 2, "a")
    assert mailbox.group() == (1, 2, {0: "a", 1: "a"})
    mailbox.join(1, 2, "b")
    assert mailbox.group() == (2, 2, {1: "b"})
    mailbox.join(0, 2, "b")
    mailbox.join(0, 1, "c")
    assert mailbox.group() == (3, 1, {0: "c"})
