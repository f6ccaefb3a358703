"""Crop and batch by step: progressive training as a function of the step and of the position, with no state.

stages    128 pixels x 32 from step 0, 256 pixels x 8 from step 92,000
step ⇄ position, and the crop and batch of both
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shards.errors import MixtureError


class TrainingStage(NamedTuple):
    """From one step on: the side of the crop, and the images of a step over all workers."""

    from_step: int
    pixels: int
    batch: int


@dataclass(frozen=True)
class CropSchedule:
    """All stages of a run, the first from step 0."""

    stages: tuple[TrainingStage, ...]

    def __post_init__(self) -> None:
        starts = [stage.from_step for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise MixtureError(
                f"stages start at steps {', '.join(map(str, starts)) or 'none'}: the first must start at 0, and "
                "each of the others later than the one before."
            )
        for stage in self.stages:
            if stage.pixels < 1 or stage.batch < 1:
                raise MixtureError(f"a stage of {stage.batch} crops of {stage.pixels} pixels is impossible.")

    @classmethod
    def constant(cls, pixels: int, batch: int) -> CropSchedule:
        """One crop and one batch from the first step to the last."""
        return cls((TrainingStage(0, pixels, batch),))

    def at_step(self, step: int) -> TrainingStage:
        """Stage of the step with this index."""
        return self.stages[bisect_right(self.stages, step, key=lambda stage: stage.from_step) - 1]

    def position_at(self, step: int) -> int:
        """Samples that are consumed before the step with this index."""
        number = bisect_right(self.stages, step, key=lambda stage: stage.from_step) - 1
        stage = self.stages[number]
        return self._starts()[number] + (step - stage.from_step) * stage.batch

    def at_position(self, position: int) -> TrainingStage:
        """Stage of the step that consumes a position."""
        return self.stages[bisect_right(self._starts(), position) - 1]

    def _starts(self) -> Sequence[int]:
        """Position at which each stage begins."""
        starts = [0]
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            starts.append(starts[-1] + (stage.from_step - before.from_step) * before.batch)
        return starts
