"""Define what a worker and its driver exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Wish(IntEnum):
    """What is wanted of a run that is under way; of several workers' wishes the largest counts."""

    GO_ON = 0
    REGROUP = 1
    """Write a checkpoint and leave, so that another group of workers goes on: a node is about to go, or has come."""
    STOP = 2
    """Write a checkpoint and leave."""


class Driver(Protocol):
    """What a worker can tell the process that launched it, and ask of it. None of it blocks or raises."""

    def say(self, line: str) -> None:
        """Show a line to whoever watches the run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Track scalars."""

    def image(self, name: str, png: bytes, step: int) -> None:
        """Track a picture."""

    def wish(self, step: int) -> Wish:
        """Return what the run is asked to do after this step, of which there were `step`."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: str
    """`finished`; or with a checkpoint, to be resumed, `stopped` or `regrouping`."""
    step: int
    total_steps: int
