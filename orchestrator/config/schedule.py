"""Learning rate as a pure function of the step, so a resume needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal

from orchestrator.config.schema import Train

RELEASE_WARMUP_EPOCHS = 15
"""Warm-up epochs of the authors' release, which start from rate 0."""


def total_steps(train: Train, steps_per_epoch: int) -> int:
    """Return the number of optimiser steps of the whole run."""
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None, "the job schema asks for one of epochs and steps"
    return max(1, round(train.epochs * steps_per_epoch))


def learning_rate(train: Train, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step `step`, from 0."""
    peak = train.learning_rate * lr_scale(train.lr_scaling, train.global_batch_size)
    if train.schedule == "release":
        return peak * _release_factor(step // steps_per_epoch, train.schedule_epochs or train.epochs)
    total = total_steps(train, steps_per_epoch)
    if step < train.warmup_steps:
        return peak * (step + 1) / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, total - train.warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _release_factor(epoch: int, length: float | None) -> float:
    """Return the factor of the release's schedule for `epoch`.

    The release steps its scheduler with an epoch counter that lags by one: epoch e trains with the value of e - 1, and
    epochs 0 and 1 both train with rate 0.
    """
    assert length is not None, "the job schema gives the release's schedule a length"
    lagging = max(0, epoch - 1)
    if lagging < RELEASE_WARMUP_EPOCHS:
        return lagging / (RELEASE_WARMUP_EPOCHS - 1)
    rest = max(1.0, length - RELEASE_WARMUP_EPOCHS)
    return 0.5 * (1 + math.cos(math.pi * (lagging - RELEASE_WARMUP_EPOCHS) / rest))


LrScaling = Literal["fixed", "linear", "sqrt"]


REFERENCE_BATCH = 32
"""Images per step of the published recipes, for which their learning rates hold."""


def lr_scale(rule: LrScaling, global_batch: int) -> float:
    """Return the factor of the learning rate for a batch size other than the published 32.

    `linear` keeps the expected update per image (Goyal et al., 2017), `sqrt` the gradient noise; `fixed` is 1.
    """
    ratio = global_batch / REFERENCE_BATCH
    return {"fixed": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]
