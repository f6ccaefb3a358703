"""Deterministic fault injection: kill worker r right after step s.

The workers of a proof get a schedule when they start, since only they know exactly which step they are at.
`orchestrator.resilience.local_workers` does the same for plain processes.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Protocol

from orchestrator.events import Event, WorkerKilled
from orchestrator.training.driver import ControlSignal, Driver


@dataclass(frozen=True)
class KillSchedule:
    """The kills of the worker groups that run one after the other."""

    stop_step: int
    """Step at which the run checkpoints and stops once all kills have happened."""
    kills: tuple[tuple[int, int], ...] = ()
    """(step, rank) of each group in turn: SIGKILL to that worker after that step, before a checkpoint."""


class FlushingDriver(Driver, Protocol):
    """A driver whose delivery can be waited for."""

    def flush(self) -> None:
        """Return when all events have been delivered."""


class FaultInjectingDriver:
    """The driver as worker `rank` of group number `group` (from 1) sees it; it kills or stops that worker."""

    def __init__(self, driver: FlushingDriver, schedule: KillSchedule, rank: int, group: int) -> None:
        self._driver, self._rank = driver, rank
        self._kill = schedule.kills[group - 1] if group <= len(schedule.kills) else None
        self._stop_step = schedule.stop_step

    def emit(self, event: Event) -> None:
        """Pass an event on."""
        self._driver.emit(event)

    def control_signal(self, step: int) -> ControlSignal:
        """Return the driver's signal, or STOP at the stop step; kill this worker if the schedule says so."""
        signal_ = self._driver.control_signal(step)
        if self._kill is None:
            return max(signal_, ControlSignal.STOP) if step >= self._stop_step else signal_
        kill_step, victim = self._kill
        if step >= kill_step and self._rank == victim:
            self._driver.emit(WorkerKilled(victim, step))
            self._driver.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return signal_
