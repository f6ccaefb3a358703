"""Take one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mirage.collective import BatchShare
from mirage.loss import restoration_loss
from mirage.model import Output
from orchestrator.config.schedule import learning_rate
from orchestrator.models.network import UserModelAdapter, UserOutput
from orchestrator.training import ema, user_networks
from orchestrator.training.determinism import seed_at, seed_generators
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
        with run.engine.sync(last=last):
            with run.engine.autocast():
                output = forward(run, batch, degraded)
            terms = loss_terms(run, output, clean, BatchShare(*batch.share))
            run.engine.backward(terms["total"] / len(micro_batches))
        logged = {f"loss/{name}": term.detach() / len(micro_batches) for name, term in terms.items()}
        logged |= degradation_sums(run.job, output.image.detach(), clean, batch.degradations)
        for name, term in logged.items():
            scalars[name] = scalars[name] + term if i else term
    if isinstance(run.model, UserModelAdapter):
        user_networks.average_buffers(run, micro_batches)

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


def forward(run: TrainingRun, batch: Batch, degraded: Tensor) -> Output | UserOutput:
    """Return the model's output for the degraded images (b, 3, h, w) of a micro-batch, on the device."""
    positions = batch.positions.to(run.engine.device)
    if not isinstance(run.model, UserModelAdapter):
        return cast(Output, run.wrapped(degraded, positions))
    seed_generators(seed_at(run.job.seed, int(batch.positions[0])))
    labels = user_networks.labels(run.job, batch).to(run.engine.device)
    return cast(UserOutput, run.wrapped(degraded, positions, labels))


def loss_terms(
    run: TrainingRun, output: Output | UserOutput, clean: Tensor, share: BatchShare
) -> dict[str, Tensor]:
    """Return this worker's share of the weighted `total` and of each term without its weight."""
    seen = output if isinstance(output, Output) else Output(output.image, None, None)
    terms = restoration_loss(seen, clean, run.loss_weights, share).terms()
    if isinstance(output, UserOutput):
        weights = run.job.loss.auxiliary_weights
        own = user_networks.auxiliary_terms(output, weights, share)
        terms |= own
        for name, weight in weights.items():
            if weight:
                terms["total"] = terms["total"] + weight * own[name]
    return terms
