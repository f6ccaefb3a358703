"""Crop size and batch size by step, for progressive training.

For example 128 pixels x 32 images from step 0, and 256 pixels x 8 images from step 92,000. A stateless mapping between
step and position, with the crop and batch size of each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shards.errors import MixtureError


class TrainingStage(NamedTuple):
    """From one step on: the side of the crop in pixels, and the images per step over all workers."""

    from_step: int
    pixels: int
    batch: int


@dataclass(frozen=True)
class CropSchedule:
    """The stages of a run; the first starts at step 0."""

    stages: tuple[TrainingStage, ...]

    def __post_init__(self) -> None:
        starts = [stage.from_step for stage in self.stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise MixtureError(
                f"stages start at steps {', '.join(map(str, starts)) or 'none'}: the first must start at 0, and "
                "each later one after the one before it."
            )
        for stage in self.stages:
            if stage.pixels < 1 or stage.batch < 1:
                raise MixtureError(f"a stage of {stage.batch} crops of {stage.pixels} pixels is impossible.")

    @classmethod
    def constant(cls, pixels: int, batch: int) -> CropSchedule:
        """Return a schedule with one crop size and batch size."""
        return cls((TrainingStage(0, pixels, batch),))

    def at_step(self, step: int) -> TrainingStage:
        """Return the stage of a step."""
        return self.stages[bisect_right(self.stages, step, key=lambda stage: stage.from_step) - 1]

    def position_at(self, step: int) -> int:
        """Return the number of samples that are consumed before a step."""
        number = bisect_right(self.stages, step, key=lambda stage: stage.from_step) - 1
        stage = self.stages[number]
        return self._starts()[number] + (step - stage.from_step) * stage.batch

    def at_position(self, position: int) -> TrainingStage:
        """Return the stage of the step that consumes a position."""
        return self.stages[bisect_right(self._starts(), position) - 1]

    def _starts(self) -> Sequence[int]:
        """Return the position at which each stage starts."""
        starts = [0]
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            starts.append(starts[-1] + (stage.from_step - before.from_step) * before.batch)
        return starts
