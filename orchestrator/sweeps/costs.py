"""Measure what a candidate of a sweep costs."""

from __future__ import annotations

from mirage.cost import macs, parameters
from orchestrator.config.constraints import Costs
from orchestrator.config.schema import Job
from orchestrator.models import user_model
from orchestrator.planning.estimate import memory


def cost_of(job: Job) -> Costs:
    """Return what the job's network costs; nothing is built but a class of the user's own."""
    if job.model.class_ is not None:
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
