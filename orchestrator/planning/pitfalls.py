"""Pitfalls of a possible job that are known before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from orchestrator.config.pipelines import large_kernels, pipelines_of, smallest_crop
from orchestrator.config.schedule import RELEASE_WARMUP_EPOCHS
from orchestrator.config.schema import Job, Train
from orchestrator.planning.estimate import ComputeRate
from shards.mixture import Mixture


def pitfalls(job: Job, mixture: Mixture, total_steps: int, rate: ComputeRate | None) -> Iterator[str]:
    """Yield a warning for each pitfall of training `job` for `total_steps` steps."""
    train, steps = job.train, f"the training ({total_steps:,} steps)"
    if train.optimizer == "lion":
        if find_spec("lion_pytorch") is None:
            yield "train.optimizer lion needs a package that is not installed here: pip install lion-pytorch"
        if train.betas == Train.model_fields["betas"].get_default():
            yield "train.betas (0.9, 0.999) are those of Adam; Lion was published with (0.9, 0.99)."
    validations = (total_steps - 1) // job.validation.every_steps
    if train.schedule == "plateau" and validations < train.patience + 2:
        yield (
            f"{steps} has {validations:,} validations before its end, too few for train.patience {train.patience}: the "
            "learning rate is never reduced. Lower it, or validation.every_steps."
        )
    if train.schedule != "release" and train.warmup_steps >= total_steps:
        yield (
            f"train.warmup_steps ({train.warmup_steps:,}) is as long as {steps} or longer, so the learning rate never "
            f"reaches its value. Set it to about {max(1, total_steps // 20):,}."
        )
    if train.schedule == "release" and train.epochs is not None and train.epochs <= RELEASE_WARMUP_EPOCHS + 1:
        yield (
            f"train.schedule release warms up for {RELEASE_WARMUP_EPOCHS} epochs; the training has {train.epochs:g}. "
            "Set train.schedule=cosine with train.steps."
        )
    for section, key in (("validation", job.validation), ("checkpoint", job.checkpoint)):
        if key.every_steps >= total_steps:
            yield (
                f"{section}.every_steps ({key.every_steps:,}) is as long as {steps} or longer: no {section} before the "
                f"end. Set it to about {max(1, total_steps // 5):,}."
            )
    if train.ema_decay is not None and 1 / (1 - train.ema_decay) > total_steps:
        reached = (1 + total_steps) / (10 + total_steps)
        yield (
            f"train.ema_decay ({train.ema_decay:g}) averages over about {1 / (1 - train.ema_decay):,.0f} steps, more "
            f"than {steps} has. At most (1 + step) / (10 + step) is used, {reached:.3f} at the end."
        )
    samples = sum(entry.count for entry in mixture.entries)
    if samples < train.global_batch_size:
        yield (
            f"the training set has {samples:,} samples, fewer than train.global_batch_size "
            f"({train.global_batch_size}): a batch repeats samples. Add photographs or lower the batch size."
        )
    pipelines = pipelines_of(job)
    for name in job.data.mixture:
        if name in pipelines:
            crop, cure = "the smallest training crop", "Raise data.crop_pixels or data.margin_pixels"
            found = large_kernels(pipelines[name], smallest_crop(job), crop, cure, resized=True)
            yield from (f"{key}: {message}" for key, message in list(found)[:1])  # others have the same cure
    if rate is not None and rate.busy:
        yield "the speed was measured while the machine was busy with other work, so the time may be too long."
