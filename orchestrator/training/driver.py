"""Define what a training worker and its driver exchange."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from orchestrator.events import Event


class ControlSignal(IntEnum):
    """A request to a running job; if workers receive different ones, the highest wins."""

    CONTINUE = 0
    RESTART = 1
    """Write a checkpoint and exit; another group of workers resumes. A node is leaving, or more are available."""
    STOP = 2
    """Write a checkpoint and exit."""


class Driver(Protocol):
    """A worker's connection to the process that launched it. No method waits for that process."""

    def emit(self, event: Event) -> None:
        """Send an event."""

    def control_signal(self, step: int) -> ControlSignal:
        """Return the current request to the run, which has just taken `step`."""
