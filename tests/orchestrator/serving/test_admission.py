from __future__ import annotations

from orchestrator.serving.admission import Room


def test_the_room_holds_as_many_as_it_says() -> None:
    room = Room(2)
    assert [room.enter() for _ in range(3)] == [True, True, False]
    room.leave()
    assert room.enter()
    assert room.inside == 2


def test_who_finds_no_room_is_told_when_a_place_is_free() -> None:
    room = Room(1)
    assert room.retry_after(1) == 1
    room.enter()
    room.leave(30.0)
    assert room.retry_after(1) == 30
    assert room.retry_after(4) == 8
    room.enter()
    room.leave(1000.0)
    assert room.retry_after(1) == 60
