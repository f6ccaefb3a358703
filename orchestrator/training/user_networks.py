"""What training does for user-defined networks besides calling them.

Their dropout and other draws are seeded at each micro-batch, their buffers are equal on all workers after each step,
their own loss terms enter the loss, and the parameters that they do not use are named once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mirage.collective import BatchShare
from orchestrator.config.schema import Job
from orchestrator.errors import ModelError
from orchestrator.events import LogMessage
from orchestrator.models.batch_statistics import GlobalBatchNorm
from orchestrator.models.network import UserModelAdapter, UserOutput
from orchestrator.training.driver import Driver
from orchestrator.training.run_state import TrainingRun
from shards.stream import Batch

STEPS_OBSERVED = 20
"""Steps after which the unused parameters are named."""
_MAX_NAMED = 8


def labels(job: Job, batch: Batch) -> Tensor:
    """Return the index of each image's degradation in the job's mixture, (b,) int64."""
    names = list(job.data.mixture)
    return torch.tensor([names.index(name) for name in batch.degradations])


def auxiliary_terms(output: UserOutput, weights: Mapping[str, float], share: BatchShare) -> dict[str, Tensor]:
    """Return this worker's share of the network's own loss terms, whose sum over workers is their mean over images.

    Raises ModelError if the terms are not those of `loss.auxiliary_weights`.
    """
    if set(output.terms) != set(weights):
        unweighted, missing = (
            sorted(set(output.terms) - set(weights)),
            sorted(set(weights) - set(output.terms)),
        )
        problems = [
            f"model.adapter returns {name}, which has no weight (0 leaves it out)" for name in unweighted
        ]
        problems += [f"{name} has a weight, and model.adapter does not return it" for name in missing]
        raise ModelError(f"loss.auxiliary_weights: {'; '.join(problems)}.")
    fraction = output.image.shape[0] / share.total
    return {name: term.float().mean() * fraction for name, term in output.terms.items()}


def average_buffers(run: TrainingRun, images: int) -> None:
    """Give all workers the same buffers, where a step has changed them: the mean over workers, weighted by `images`.

    For running means, that is the running mean over the global batch. Those of GlobalBatchNorm are equal already. With
    several workers the host reads which buffers have changed, and so waits for the device.
    """
    engine = run.engine
    if engine.world_size == 1:
        return
    equal = {id(b) for m in run.model.modules() if isinstance(m, GlobalBatchNorm) for b in m.buffers()}
    own = [(b, flag) for b, flag in run.changed_buffers() if id(b) not in equal]
    if not own:
        return
    flags = engine.all_reduce_sum(torch.tensor([float(flag) for _, flag in own], device=engine.device))
    changed = [buffer for (buffer, _), flag in zip(own, flags.tolist(), strict=True) if flag]
    weighted = [images * buffer.double().flatten() for buffer in changed]
    total = torch.full((1,), float(images), dtype=torch.float64, device=engine.device)
    pooled = engine.all_reduce_sum(torch.cat([total, *weighted]))
    parts = torch.split(pooled[1:] / pooled[0], [buffer.numel() for buffer in changed])
    for buffer, mean in zip(changed, parts, strict=True):
        buffer.copy_((mean if buffer.is_floating_point() else mean.round()).view(buffer.shape))


class UsageReport:
    """Names the parameters that a user-defined network does not use, once after the first steps of a run."""

    def __init__(self, run: TrainingRun, total_steps: int) -> None:
        self._run = run
        self._steps_left = 0
        if isinstance(run.model, UserModelAdapter) and run.step == 0:
            run.model.unused = []
            self._steps_left = min(STEPS_OBSERVED, total_steps - run.step)

    def step_taken(self, driver: Driver) -> None:
        """Count a step; all workers call this together."""
        if self._steps_left == 0:
            return
        self._steps_left -= 1
        model = self._run.model
        if self._steps_left or not isinstance(model, UserModelAdapter) or model.unused is None:
            return
        mine = {"always": sorted(set.intersection(*model.unused)), "ever": sorted(set.union(*model.unused))}
        model.unused = None
        rows = self._run.engine.all_gather([dict(mine)])
        if self._run.engine.rank == 0:
            always = set.intersection(*(set(row["always"]) for row in rows))  # type: ignore[call-overload]
            ever = set.union(*(set(row["ever"]) for row in rows))  # type: ignore[call-overload]
            for text in unused_parameters(always, ever - always, len(list(model.parameters()))):
                driver.emit(LogMessage(text, "warning"))


def unused_parameters(always: set[str], sometimes: set[str], total: int) -> list[str]:
    """Return what to say about parameters that no forward pass used, and about those that some did not use."""
    texts = []
    if always:
        texts.append(
            f"{len(always)} of {total} parameters were not used in the first steps, so they do not learn: "
            f"{_list(always)}."
        )
    if sometimes:
        texts.append(
            f"{len(sometimes)} of {total} parameters were used for some inputs only: {_list(sometimes)}. For other "
            "inputs their gradient is zero."
        )
    return texts


def _list(names: set[str]) -> str:
    first = sorted(names)[:_MAX_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
