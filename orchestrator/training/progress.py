"""Measure the rate and the remaining time of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping

from orchestrator.events import Progress


class ProgressMeter:
    """Measures how fast a run proceeds; no training decision depends on the clock."""

    def __init__(self, step: int, total: int) -> None:
        self._total = total
        self._first = step
        self._began = self._mark = time.monotonic()
        self._steps = 0
        self._waited = 0.0
        self._before = self._began
        self._looked = self._began

    def is_time_to_look(self, seconds: float) -> bool:
        """Return whether that many seconds have passed since the last time that it was time."""
        now = time.monotonic()
        if now - self._looked < seconds:
            return False
        self._looked = now
        return True

    def data_arrived(self) -> None:
        """Note that it is here: the time since it was asked for was spent waiting."""
        self._waited += time.monotonic() - self._before

    def asks_for_data(self) -> None:
        """Note that the next batch is asked for."""
        self._before = time.monotonic()

    def step_taken(self) -> None:
        """Note the end of a step."""
        self._steps += 1

    def rates(self, batch: int) -> dict[str, float]:
        """Return images per second and the share of time that data was waited for, since the last call."""
        now = time.monotonic()
        passed = max(now - self._mark, 1e-9)
        values = {
            "perf/images_per_second": self._steps * batch / passed,
            "perf/data_wait": self._waited / passed,
        }
        self._mark, self._steps, self._waited = now, 0, 0.0
        return values

    def event(self, step: int, metrics: Mapping[str, float]) -> Progress:
        """Return the progress at `step`."""
        done = step - self._first
        left = (time.monotonic() - self._began) / max(done, 1) * (self._total - step)
        return Progress(step, metrics, self._total, left)
