"""Scale the loss for fp16, whose exponent range is too small for small gradients.

The factor doubles after `GROWTH_INTERVAL` steps with finite gradients, and halves after a step without, which is
skipped. It is equal on all workers and part of a checkpoint. It is kept on the device, so that no step waits for it.

`torch.amp.GradScaler` does not fit: from ZeRO stage 1 on DeepSpeed holds the gradients and unscales them itself, so a
GradScaler finds none to check, and it would take a step whose gradients are finite but whose norm overflows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

INITIAL_SCALE = 65536.0
GROWTH_INTERVAL = 2000
"""Consecutive steps with finite gradients before the factor doubles."""
MAX_SCALE = 2.0**100
"""Infinity would stay infinite when it is halved."""


class LossScale:
    """The factor, and the number of finite steps since it changed."""

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.tensor(INITIAL_SCALE, device=device)
        self.finite_steps = torch.tensor(0, device=device)

    def update(self, finite: Tensor) -> None:
        """Update the factor after a step with `finite` gradients, a bool on the device."""
        self.finite_steps.add_(1).mul_(finite)
        grows = self.finite_steps == GROWTH_INTERVAL
        self.factor.mul_(0.5 + 0.5 * finite + grows)  # 0.5, 1 or 2
        self.factor.clamp_(max=MAX_SCALE)
        self.finite_steps.mul_(~grows)

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint; this waits for the device."""
        return {"factor": float(self.factor), "held": int(self.finite_steps)}

    def load(self, state: Mapping[str, float]) -> None:
        """Load what `state` returned; an empty state resets to the initial values."""
        self.factor.fill_(state.get("factor", INITIAL_SCALE))
        self.finite_steps.fill_(int(state.get("held", 0)))
