"""Worker 0 calls the driver's actor about once a second, however short its steps are; others with events only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.events import LogMessage
from orchestrator.training import ray_driver_relay
from orchestrator.training.driver import ControlSignal
from orchestrator.training.ray_driver_relay import EXCHANGE_SECONDS, RemoteDriver
from tests.scale.growth import stays_flat

SECONDS = 20
STEPS_PER_SECOND = [5, 50, 500]


class Calls:
    """Stands for an actor's handle; Ray is not running."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: object) -> ControlSignal:
            self.made.append(name)
            return ControlSignal.CONTINUE

        return SimpleNamespace(remote=remote)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only by the steps; every answer of Ray is there at once."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(ray_driver_relay, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    answers = SimpleNamespace(
        wait=lambda references, timeout: (references, []), get=lambda reference: reference
    )
    monkeypatch.setattr(ray_driver_relay, "ray", answers)
    return now


def calls_of(clock: SimpleNamespace, rank: int, per_second: int, events_every: int = 0) -> list[str]:
    """Return the calls that a worker makes in twenty seconds."""
    clock.seconds = 0.0
    relay = Calls()
    driver = RemoteDriver(relay, rank, 10**9, SimpleNamespace(synchronize=lambda step: None))  # type: ignore[arg-type]
    for step in range(1, SECONDS * per_second + 1):
        clock.seconds += 1 / per_second
        if events_every and step % events_every == 0:
            driver.emit(LogMessage("a warning", "warning"))
        assert driver.control_signal(step) is ControlSignal.CONTINUE
    return relay.made


def test_worker_0_calls_about_once_a_second_for_any_number_of_steps(clock: SimpleNamespace):
    def calls(per_second: int) -> int:
        return calls_of(clock, 0, per_second).count("exchange")

    assert max(stays_flat(calls, STEPS_PER_SECOND)) <= SECONDS / EXCHANGE_SECONDS + 1


@pytest.mark.parametrize("rank", [1, 7, 1023])
def test_another_worker_calls_only_with_events_and_at_most_once_a_second(clock: SimpleNamespace, rank: int):
    assert calls_of(clock, rank, 50) == []
    calls = calls_of(clock, rank, 50, events_every=1)
    assert set(calls) == {"exchange"}
    assert len(calls) <= SECONDS / EXCHANGE_SECONDS + 1
