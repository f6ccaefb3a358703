"""Map each kind of job to the functions that run and plan it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.config.job_types import AnyJob, JobOutcome
from orchestrator.config.schema import Job
from orchestrator.console import Echo
from orchestrator.data.job import plan_pack, run_pack
from orchestrator.errors import PlanError
from orchestrator.evaluation.job import plan_evaluation, run_evaluation
from orchestrator.planning.plan import make_plan
from orchestrator.restoration.job import plan_restore, run_restore
from orchestrator.sweeps.job import run_sweep
from orchestrator.sweeps.plan import plan_sweep
from orchestrator.training.job import run_job


@dataclass(frozen=True)
class Action:
    """The functions that run and plan jobs of one kind."""

    run: Callable[..., JobOutcome]
    """(job, echo, *, in_process) -> outcome; also with `wait` for the kinds in `_OWNED`."""
    plan: Callable[[Any], str]
    """Job -> what it will do and cost, as text."""


ACTIONS: dict[str, Action] = {
    "train": Action(run_job, lambda job: make_plan(job, strict=False).render()),
    "pack": Action(run_pack, plan_pack),
    "evaluate": Action(run_evaluation, plan_evaluation),
    "restore": Action(run_restore, plan_restore),
    "sweep": Action(run_sweep, plan_sweep),
}

_OWNED = ("train", "sweep")
"""Kinds of jobs that one process at a time may run."""


def run_any(job: AnyJob, echo: Echo, *, in_process: bool = False, wait: bool = False) -> JobOutcome:
    """Run a job of any kind; `in_process` does not use Ray, `wait` waits while another process owns the run."""
    owned = {"wait": wait} if job.kind in _OWNED else {}
    return ACTIONS[job.kind].run(job, echo, in_process=in_process, **owned)


def plan_any(job: AnyJob) -> str:
    """Return what a job of any kind will do and cost."""
    return ACTIONS[job.kind].plan(job)


def plan_shapes(job: AnyJob) -> str:
    """Return cluster shapes for `job`, sorted by cost. Raises PlanError for kinds that do not train."""
    from orchestrator.planning import cluster_shapes

    if not isinstance(job, Job) or job.model.class_ is not None:
        raise PlanError(
            f"--shapes compares the cost of training MIRAGE; {job.name} is of kind {job.kind}"
            + (" and trains a user-defined model." if isinstance(job, Job) else ".")
        )
    return cluster_shapes.render(make_plan(job, strict=False))
