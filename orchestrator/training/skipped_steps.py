"""Count skipped steps on the device, so that no step waits until its gradient is known to be finite."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.training.finite import diverged

MAX_CONSECUTIVE_SKIPS = 100
"""A run with so many steps in a row without a finite gradient has diverged."""


class SkippedSteps:
    """The number of skipped steps of a run, and the longest row of them since it started or resumed."""

    def __init__(self, device: torch.device, total: int = 0) -> None:
        self._total, self._in_a_row, self._longest = (
            torch.tensor(number, device=device) for number in (total, 0, 0)
        )

    def step_taken(self, finite: Tensor) -> None:
        """Count a step, which was skipped unless `finite`, a bool on the device."""
        skipped = ~finite
        self._total += skipped
        self._in_a_row.add_(1).mul_(skipped)
        torch.maximum(self._longest, self._in_a_row, out=self._longest)

    def total(self) -> int:
        """Return the number of skipped steps; this waits for the device."""
        return int(self._total)

    def require_finite_steps(self, step: int) -> None:
        """Raise TrainingError if too many steps in a row were skipped before `step`; this waits for the device."""
        if (longest := int(self._longest)) >= MAX_CONSECUTIVE_SKIPS:
            raise diverged(f"the gradients of {longest} steps in a row were not finite (step {step})")
