"""Scale the loss for fp16, whose exponent range is too small for small gradients.

The factor doubles after `GROWTH_INTERVAL` steps with finite gradients, and halves after a step without, which is
skipped. It is equal on all workers and part of a checkpoint.

`torch.amp.GradScaler` does not fit: from ZeRO stage 1 on DeepSpeed holds the gradients and unscales them itself, so a
GradScaler finds none to check, and it would take a step whose gradients are finite but whose norm overflows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INITIAL_SCALE = 65536.0
GROWTH_INTERVAL = 2000
"""Consecutive steps with finite gradients before the factor doubles."""


@dataclass
class LossScale:
    """The factor, and the number of finite steps since it changed."""

    factor: float = INITIAL_SCALE
    finite_steps: int = 0

    def update(self, finite: bool) -> None:
        """Update the factor after a step."""
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.finite_steps == GROWTH_INTERVAL:
            self.factor, self.finite_steps = 2 * self.factor, 0

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return {"factor": self.factor, "held": self.finite_steps}

    def load(self, state: Mapping[str, float]) -> None:
        """Load what `state` returned; an empty state resets to the initial values."""
        self.factor, self.finite_steps = state.get("factor", INITIAL_SCALE), int(state.get("held", 0))
