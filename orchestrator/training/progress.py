"""What one sees of a run while it goes: the progress line, rates, and a fixed sheet of photographs."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Progress:
    """Where a run stands and how fast it goes; the clock never decides anything."""

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

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """Return the progress line."""
        done = step - self._first
        left = (time.monotonic() - self._began) / max(done, 1) * (self._total - step)
        terms = "  ".join(
            f"{name} {values[f'loss/{name}']:.4f}"
            for name in ("total", "l1", "fourier", "spd")
            if f"loss/{name}" in values
        )
        return (
            f"step {step}/{self._total}  {terms}  {values['perf/images_per_second']:.1f} images/s  "
            f"waiting for data {100 * values['perf/data_wait']:.1f} %  {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
