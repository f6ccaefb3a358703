"""What readers must deliver, and what the job's pipelines cost them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.config.pipelines import pipelines_of
from orchestrator.config.schema import Job
from orchestrator.planning.estimate import Estimate
from shards.crop_schedule import CropSchedule
from shards.degradations.pipeline import Pipeline, training_key
from shards.mixture import Mixture

_CROPS = 12
"""Number of crops on which a pipeline is measured."""


@dataclass(frozen=True)
class Reading:
    """What readers must deliver, in words, and why they may be too slow ("" if not known)."""

    words: str
    warning: str = ""


def reading(
    job: Job, mixture: Mixture, stages: CropSchedule, steps: int, estimates: Sequence[Estimate]
) -> Reading:
    """Return the crops a second that each worker needs, and the CPU time of the pipelines, measured here."""
    parts, needed, warning = [], 0.0, ""
    if estimates:
        few = estimates[0]
        needed = stages.position_at(steps) / (steps * few.step_seconds * few.workers)
        count = job.data.readers
        readers = f"{count} reader{'s' * (count > 1)}" if count else "itself (data.readers is 0)"
        each = f", {needed / count:.1f} each" if count > 1 else ""
        parts.append(f"{needed:.1f} crops a second for each worker, from {readers}{each}")
    shares = {entry.degradation: entry.per_epoch / mixture.samples_per_epoch for entry in mixture.entries}
    pipelines = {name: each for name, each in pipelines_of(job).items() if name in shares}
    used = {
        name: crop_seconds(each, job.seed, stages, job.data.margin_pixels) for name, each in pipelines.items()
    }
    if used:
        mean = sum(shares[name] * seconds for name, seconds in used.items())
        cores = f", {needed * mean:.2g} cores per worker" if needed else ""
        if needed * mean > max(1, job.data.readers):
            warning = (
                f"pipelines need about {needed * mean:.2g} cores per worker, and data.readers is {job.data.readers}: "
                "readers, not the model, may decide the speed. Raise data.readers, or use simpler pipelines."
            )
        listed = ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in used.items())
        parts.append(f"pipelines take {1000 * mean:.1f} ms of CPU a crop here{cores} ({listed} ms)")
    return Reading("; ".join(parts), warning)


def crop_seconds(pipeline: Pipeline, seed: int, stages: CropSchedule, margin: int = 0) -> float:
    """Return the mean CPU time of a pipeline for a crop with its margin, over some draws."""
    side = max(stage.pixels for stage in stages.stages) + 2 * margin
    crop = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    pipeline.degrade(crop, training_key(seed, 0))  # the first call imports and allocates
    began = time.process_time()
    for position in range(1, 1 + _CROPS):
        pipeline.degrade(crop, training_key(seed, position))
    return (time.process_time() - began) / _CROPS
