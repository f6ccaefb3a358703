"""Take one optimizer step.

The host never waits for the device in a step: a step that is not finite is skipped on the device, and counters and
scalars stay there until they are logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mirage.collective import BatchShare
from mirage.loss import restoration_loss
from mirage.model import Output
from orchestrator.models.network import UserModelAdapter, UserOutput
from orchestrator.training import user_networks
from orchestrator.training.determinism import seed_at, seed_generators
from orchestrator.training.graphed_step import Compute
from orchestrator.training.loss_breakdown import degradation_sums
from orchestrator.training.run_state import TrainingRun
from orchestrator.training.step_input import StepInput
from shards.stream import Batch, to_device


def train_step(run: TrainingRun, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Advance `run` by one optimiser step; return this worker's share of the scalars, detached, on the device.

    Sums over workers of the `loss/` terms are those of the global batch. A step whose gradient is not finite leaves
    weights and BatchNorm statistics unchanged and is counted.
    """
    inputs = [prepare(run, batch) for batch in micro_batches]
    train = run.job.train
    for group in run.optimizer.param_groups:
        group["lr"].fill_(run.learning_rate(run.step))
    if run.ema is not None:
        run.ema.set_weight(train.ema_decay or 0.0, run.step)
    take = run.graph.take if run.graph is not None else _eagerly
    scalars = take(inputs, lambda given: compute(run, given))
    run.step += 1
    return scalars


def _eagerly(inputs: Sequence[StepInput], function: Compute) -> dict[str, Tensor]:
    return function(inputs)


def prepare(run: TrainingRun, batch: Batch) -> StepInput:
    """Copy a batch to the device and add its noise there."""
    device, seed = run.engine.device, run.job.seed
    degraded, clean = batch.to_float(device, seed, run.job.data.noise)
    positions, labels = (
        to_device(t, device) for t in (batch.positions, user_networks.labels(run.job, batch))
    )
    first = int(batch.positions[0])
    return StepInput(degraded, clean, positions, labels, BatchShare(*batch.share), seed_at(seed, first))


def compute(run: TrainingRun, inputs: Sequence[StepInput]) -> dict[str, Tensor]:
    """Compute what a step does on the device: everything from the forward pass to EMA and counters.

    For MIRAGE nothing here depends on a value of the device.
    """
    run.model.train()
    run.keep_buffers()
    scalars: dict[str, Tensor] = {}
    for i, each in enumerate(inputs):
        with run.engine.sync(last=i == len(inputs) - 1):
            with run.engine.autocast():
                output = forward(run, each)
            terms = loss_terms(run, output, each.clean, each.share)
            run.engine.backward(terms["total"] / len(inputs))
        logged = {f"loss/{name}": term.detach() / len(inputs) for name, term in terms.items()}
        logged |= degradation_sums(run.job, output.image.detach(), each.clean, each.labels)
        for name, term in logged.items():
            scalars[name] = scalars[name] + term if i else term
    if isinstance(run.model, UserModelAdapter):
        user_networks.average_buffers(run, images=sum(len(each.labels) for each in inputs))

    norm = run.engine.step(run.optimizer, run.job.train.clip_norm)
    finite = torch.isfinite(norm)
    run.restore_buffers_unless(finite)
    if run.ema is not None:
        with run.engine.full_params(run.model):
            run.ema.update(finite)
    run.skipped.step_taken(finite)
    # The norm is equal on all workers, and scalars are summed over the workers.
    scalars["optim/grad_norm"] = norm.detach() / run.engine.world_size
    return scalars


def forward(run: TrainingRun, inputs: StepInput) -> Output | UserOutput:
    """Return the model's output for the degraded images of a micro-batch."""
    if not isinstance(run.model, UserModelAdapter):
        return cast(Output, run.wrapped(inputs.degraded, inputs.positions))
    seed_generators(inputs.seed)
    return cast(UserOutput, run.wrapped(inputs.degraded, inputs.positions, inputs.labels))


def loss_terms(
    run: TrainingRun, output: Output | UserOutput, clean: Tensor, share: BatchShare
) -> dict[str, Tensor]:
    """Return this worker's share of the weighted `total` and of each term without its weight."""
    seen = output if isinstance(output, Output) else Output(output.image, None, None)
    terms = restoration_loss(seen, clean, run.loss_weights, share, run.perceptual).terms()
    if isinstance(output, UserOutput):
        weights = run.job.loss.auxiliary_weights
        own = user_networks.auxiliary_terms(output, weights, share)
        terms |= own
        for name, weight in weights.items():
            if weight:
                terms["total"] = terms["total"] + weight * own[name]
    return terms
