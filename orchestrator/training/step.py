"""Take one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mirage.collective import BatchShare
from mirage.loss import restoration_loss
from orchestrator.config.schedule import learning_rate
from orchestrator.training import ema
from orchestrator.training.finite import diverged
from orchestrator.training.loss_breakdown import degradation_sums
from orchestrator.training.run_state import TrainingRun
from shards.stream import Batch

MAX_CONSECUTIVE_SKIPS = 100
"""A run with so many steps in a row without a finite gradient has diverged."""


def train_step(run: TrainingRun, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Advance `run` by one optimiser step; return this worker's share of the scalars, detached.

    Sums over workers of the `loss/` terms are those of the global batch. A step whose gradient is not finite leaves
    weights and BatchNorm statistics unchanged and is counted.
    """
    run.model.train()
    run.keep_buffers()
    train = run.job.train
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(train, run.step, run.steps_per_epoch)

    scalars: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        degraded, clean = batch.to_float(run.engine.device, run.job.seed, run.job.data.noise)
        share = BatchShare(*batch.share)
        with run.engine.sync(last=last):
            with run.engine.autocast():
                output = run.wrapped(degraded, batch.positions.to(run.engine.device))
            loss = restoration_loss(output, clean, run.loss_weights, share)
            run.engine.backward(loss.total / len(micro_batches))
        terms = {f"loss/{name}": term.detach() / len(micro_batches) for name, term in loss.terms().items()}
        for name, term in (
            terms | degradation_sums(run.job, output.image.detach(), clean, batch.degradations)
        ).items():
            scalars[name] = scalars[name] + term if i else term

    norm = run.engine.step(run.optimizer, train.clip_norm)
    if torch.isfinite(norm):
        if run.ema is not None:
            with run.engine.full_params(run.model):
                ema.update(run.ema, run.model, train.ema_decay or 0.0, run.step)
        run.consecutive_skips = 0
    else:
        run.restore_buffers()
        run.skipped_steps += 1
        run.consecutive_skips += 1
        if run.consecutive_skips == MAX_CONSECUTIVE_SKIPS:
            raise diverged(
                f"the gradients of the last {MAX_CONSECUTIVE_SKIPS} steps were not finite (step {run.step})"
            )
    run.step += 1
    # The norm is equal on all workers, and scalars are summed over the workers.
    scalars["optim/grad_norm"] = norm.detach() / run.engine.world_size
    return scalars
