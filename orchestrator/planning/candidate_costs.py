"""Decide whether a candidate of a sweep is run: compute its costs from its job, and compare them with limits."""

from __future__ import annotations

from mirage.cost import macs, parameters
from orchestrator.config.constraints import Costs, violations
from orchestrator.config.schema import Job
from orchestrator.config.search_space import Values, candidate
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import ModelError
from orchestrator.planning.estimate import memory


def examine(sweep: SweepJob, values: Values) -> tuple[Job, Costs] | str:
    """Return the job of a trial with these values and its costs, or why it is not run."""
    made = candidate(sweep, values)
    if made.job is None:
        return made.impossible
    try:
        costs = cost_of(made.job)
    except ModelError as error:  # the class refuses these values
        return str(error)
    return violations(costs, sweep.sweep.constraints) or (made.job, costs)


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
