"""What a training step computes from."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from torch import Tensor

from mirage.collective import BatchShare


class StepInput(NamedTuple):
    """A worker's share of a micro-batch on its device, b images."""

    degraded: Tensor
    """(b, 3, h, w) float32 in [0, 1], with noise."""
    clean: Tensor
    """(b, 3, h, w) float32 in [0, 1]."""
    positions: Tensor
    """(b,) int64, positions in the stream; they seed DropPath."""
    labels: Tensor
    """(b,) int64, index of each image's degradation in the job's mixture."""
    share: BatchShare
    seed: int
    """Seed of what a user-defined network draws."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what differs from step to step for MIRAGE."""
        return self.degraded, self.clean, self.positions, self.labels

    def form(self) -> Hashable:
        """Return what a recorded step holds as constants."""
        return self.share, tuple((tensor.shape, tensor.dtype) for tensor in self.tensors())

    def clone(self) -> StepInput:
        """Return a copy in memory of its own."""
        degraded, clean, positions, labels = (tensor.clone() for tensor in self.tensors())
        return StepInput(degraded, clean, positions, labels, self.share, self.seed)
