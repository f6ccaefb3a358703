"""A metric of a run of any length, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_POINTS = 1000
"""Maximum number of points of a curve; in a longer run each one is the mean of several measurements."""


@dataclass
class Curve:
    """A metric by step. Every point is the mean of `every` measurements, the last one perhaps of fewer."""

    steps: list[int] = field(default_factory=list)
    """Of the last measurement of each point, in ascending order."""
    values: list[float | None] = field(default_factory=list)
    """None: not finite, or too large to be drawn."""
    every: int = 1
    in_last: int = 0
    """Measurements in the last point."""

    def add(self, step: int, value: float) -> None:
        """Add a measurement. Those at later steps are forgotten: the run has resumed before them."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
            self.in_last = self.every
        if self.steps and self.in_last < self.every:
            before = self.values[-1]
            mean = math.nan if before is None else before + (value - before) / (self.in_last + 1)
            self.steps[-1], self.values[-1] = step, finite(mean)
            self.in_last += 1
        else:
            self.steps.append(step)
            self.values.append(finite(value))
            self.in_last = 1
        if len(self.steps) > MAX_POINTS and self.in_last == self.every:
            self._halve()

    def _halve(self) -> None:
        """Merge each two points; an odd last one stays half full."""
        pairs = zip(self.values[::2], self.values[1::2], strict=False)
        merged = [None if a is None or b is None else finite((a + b) / 2) for a, b in pairs]
        odd = len(self.values) % 2
        self.values = [*merged, *self.values[len(self.values) - odd :]]
        self.steps = [*self.steps[1::2], *self.steps[len(self.steps) - odd :]]
        self.every, self.in_last = 2 * self.every, self.every if odd else 2 * self.every


def finite(value: float) -> float | None:
    """Return a value with six digits, None if it is not finite or too large to be drawn."""
    if not abs(value) < 1e30:
        return None
    return float(f"{value:.6g}") if abs(value) > 1e-30 else 0.0
