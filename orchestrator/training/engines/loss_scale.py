"""Loss scaling for fp16: its exponent is too short for small gradients, so the loss is multiplied before them.

The factor is found by trying: it doubles after many steps whose gradients were finite, and halves after one whose
were not, which moves no weight. It is the same on all workers, and part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIRST = 65536.0
GROWS_AFTER = 2000
"""Finite steps in a row."""


@dataclass
class GradientScale:
    """The factor, and how long it has held."""

    factor: float = FIRST
    held: int = 0

    def update(self, finite: bool) -> None:
        """Note whether a step's gradients were finite."""
        self.held = self.held + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.held == GROWS_AFTER:
            self.factor, self.held = 2 * self.factor, 0

    def state(self) -> dict[str, float]:
        """Return what a checkpoint holds."""
        return {"factor": self.factor, "held": self.held}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` returned; one without a factor begins anew."""
        self.factor, self.held = state.get("factor", FIRST), int(state.get("held", 0))
