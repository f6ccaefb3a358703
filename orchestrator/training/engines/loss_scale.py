"""Loss scaling for fp16: its exponent is too short for small gradients, so the loss is multiplied before them.

The factor is found by trying: it doubles after many steps whose gradients were finite, and halves after one whose
were not, which moves no weight. It is the same on all workers, and part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INITIAL_SCALE = 65536.0
GROWTH_INTERVAL = 2000
"""Finite steps in a row."""


@dataclass
class LossScale:
    """The factor, and how long it has held."""

    factor: float = INITIAL_SCALE
    finite_steps: int = 0

    def update(self, finite: bool) -> None:
        """Note whether a step's gradients were finite."""
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.finite_steps == GROWTH_INTERVAL:
            self.factor, self.finite_steps = 2 * self.factor, 0

    def state(self) -> dict[str, float]:
        """Return what a checkpoint holds."""
        return {"factor": self.factor, "held": self.finite_steps}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` returned; one without a factor begins anew."""
        self.factor, self.finite_steps = state.get("factor", INITIAL_SCALE), int(state.get("held", 0))
