"""Crop size and batch size by step, from the stages of a job."""

from __future__ import annotations

import math

from orchestrator.config.schema import CropStage, Training
from shards.crop_schedule import CropSchedule, TrainingStage
from shards.errors import MixtureError


def declared(job: Training) -> tuple[CropStage, ...]:
    """Return the stages of the job. A single crop size is one stage."""
    crop = job.data.crop_pixels
    return (CropStage(from_step=0, pixels=crop),) if isinstance(crop, int) else crop


def batches(job: Training) -> tuple[int, ...]:
    """Return the global batch size of each stage."""
    return tuple(stage.batch or job.train.global_batch_size for stage in declared(job))


def stages(job: Training, positions_per_epoch: int) -> CropSchedule:
    """Return the job's stages by step. A stage given by epoch starts at the first step of that epoch.

    Raises MixtureError when they are not in ascending order.
    """
    found: list[TrainingStage] = []
    for stage, batch in zip(declared(job), batches(job), strict=True):
        if stage.from_step is not None or not found:
            step = stage.from_step or 0
        else:
            before = CropSchedule(tuple(found))
            last = found[-1]
            position = math.ceil((stage.from_epoch or 0) * positions_per_epoch)
            ahead = position - before.position_at(last.from_step)
            step = last.from_step + -(-ahead // last.batch)
        if found and step <= found[-1].from_step:
            raise MixtureError(
                f"data.crop_pixels: the stage of {stage.pixels} pixels starts at step {step}, not after the one "
                f"before it, at step {found[-1].from_step}."
            )
        found.append(TrainingStage(step, stage.pixels, batch))
    return CropSchedule(tuple(found))
