"""How a run of a proof ends, told to its workers beforehand, so that it happens at the very step.

`orchestrator.resilience.local_workers` does this to plain processes; here it is for workers that somebody else
starts, and starts anew."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from orchestrator.training.driver import Driver, Wish

KILLED = "is killed after step"
"""A worker's last words."""


@dataclass(frozen=True)
class Fate:
    """What becomes of the groups of workers that take up a run one after the other."""

    stop: int
    """The step at which the run stops with a checkpoint, when every death is died."""
    deaths: tuple[tuple[int, int], ...] = ()
    """(step, worker) of each group in turn: after that step that worker dies by SIGKILL, before a checkpoint."""


class Flushing(Driver, Protocol):
    """A driver that can be waited for."""

    def flush(self) -> None:
        """Return when it has been told everything."""


class Fated:
    """The driver as worker `rank` of the `group`-th group sees it, from 1: it also says when this worker ends."""

    def __init__(self, driver: Flushing, fate: Fate, rank: int, group: int) -> None:
        self._driver, self._rank = driver, rank
        self._death = fate.deaths[group - 1] if group <= len(fate.deaths) else None
        self._stop = fate.stop

    def say(self, line: str) -> None:
        """Show a line."""
        self._driver.say(line)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Track scalars."""
        self._driver.metrics(step, values)

    def image(self, name: str, png: bytes, step: int) -> None:
        """Track a picture."""
        self._driver.image(name, png, step)

    def wish(self, step: int) -> Wish:
        """Return what the driver wants, or that the last step was taken; a worker whose step it is does not return."""
        wanted = self._driver.wish(step)
        if self._death is None:
            return max(wanted, Wish.STOP) if step >= self._stop else wanted
        when, who = self._death
        if step >= when and self._rank == who:
            self._driver.say(f"worker {who} {KILLED} {step}")
            self._driver.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return wanted

    def flush(self) -> None:
        """Return when the driver has been told everything."""
        self._driver.flush()
