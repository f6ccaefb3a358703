"""Learning rate as a pure function of the step, so a resume needs no scheduler state but that of `plateau`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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


def learning_rate(train: Train, step: int, steps_per_epoch: int, reductions: int = 0) -> float:
    """Return the learning rate of step `step`, from 0, after `reductions` of schedule `plateau`."""
    peak = train.learning_rate * lr_scale(train.lr_scaling, train.global_batch_size)
    if train.schedule == "release":
        return peak * _release_factor(step // steps_per_epoch, train.schedule_epochs or train.epochs)
    if step < train.warmup_steps:
        return peak * (step + 1) / train.warmup_steps
    if train.schedule == "restarts":
        return _restarting(train, peak, step - train.warmup_steps)
    if train.schedule == "multistep":
        return peak * train.rate_factor ** sum(step >= milestone for milestone in train.milestones)
    if train.schedule == "plateau":
        return max(peak * train.rate_factor**reductions, train.minimum_rate)
    if train.schedule == "constant":
        return peak
    total = total_steps(train, steps_per_epoch)
    done = (step - train.warmup_steps) / max(1, total - train.warmup_steps)
    low = train.minimum_rate
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _restarting(train: Train, peak: float, step: int) -> float:
    """Return the rate of a step of the cycles, as BasicSR's CosineAnnealingRestartCyclicLR has it.

    The step at which a cycle ends still has its minimum; the next cycle is felt one step later.
    """
    for cycle in train.cycles[:-1]:
        if step <= cycle.steps:
            break
        step -= cycle.steps
    else:
        cycle = train.cycles[-1]
    low = cycle.minimum_rate
    return low + cycle.weight * 0.5 * (peak - low) * (1 + math.cos(math.pi * min(1.0, step / cycle.steps)))


@dataclass(frozen=True)
class Plateau:
    """What schedule `plateau` knows of the validations so far."""

    best: float | None = None
    """Highest score; None before the first one that is finite."""
    waited: int = 0
    """Validations since then or since the latest reduction."""
    reductions: int = 0
    """How often the learning rate was reduced."""

    def after(self, score: float, patience: int) -> Plateau:
        """Return the state after a validation. A score that is not finite improves nothing."""
        if math.isfinite(score) and (self.best is None or score > self.best):
            return replace(self, best=score, waited=0)
        if self.waited < patience:
            return replace(self, waited=self.waited + 1)
        return replace(self, waited=0, reductions=self.reductions + 1)


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
