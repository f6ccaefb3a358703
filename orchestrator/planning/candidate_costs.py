"""Compute the costs of a candidate of a sweep from its job."""

from __future__ import annotations

from mirage.cost import macs, parameters
from orchestrator.config.constraints import Costs
from orchestrator.config.schema import Job
from orchestrator.planning.estimate import memory


def cost_of(job: Job) -> Costs:
    """Return the costs of the job's network; only a user-defined model is built for it."""
    if job.model.class_ is not None:
        from orchestrator.models import user_model  # imports torch

        network = user_model.build(job.model.class_, job.model.path, job.model.arguments)
        count = sum(p.numel() for p in network.parameters())
        return Costs(count, count, 0, 0)
    config = job.model.build()
    return Costs(
        parameters=parameters(config),
        parameters_at_inference=parameters(config, spd_head=False),
        macs_224=macs(config, 224, 224),
        training_memory=memory(job, job.workers.min).total,
    )
