"""Map each kind of job to the functions that run and plan it.

Each is imported when it is called: to plan a training job needs neither PyTorch nor MLflow nor Optuna.
"""

from __future__ import annotations

from orchestrator.config.job_schemas import EvaluateJob, PackJob, RestoreJob
from orchestrator.config.job_types import AnyJob, JobOutcome
from orchestrator.config.schema import Job
from orchestrator.console import Echo
from orchestrator.errors import PlanError


def run_any(job: AnyJob, echo: Echo, *, in_process: bool = False, wait: bool = False) -> JobOutcome:
    """Run a job of any kind.

    `in_process` does not use Ray. `wait` waits while another process owns the run; only training and sweeps are owned.
    """
    if isinstance(job, PackJob):
        from orchestrator.data.job import run_pack

        return run_pack(job, echo, in_process=in_process)
    if isinstance(job, EvaluateJob):
        from orchestrator.evaluation.job import run_evaluation

        return run_evaluation(job, echo, in_process=in_process)
    if isinstance(job, RestoreJob):
        from orchestrator.restoration.job import run_restore

        return run_restore(job, echo, in_process=in_process)
    if isinstance(job, Job):
        from orchestrator.training.job import run_job

        return run_job(job, echo, in_process=in_process, wait=wait)
    from orchestrator.sweeps.job import run_sweep

    return run_sweep(job, echo, in_process=in_process, wait=wait)


def plan_any(job: AnyJob) -> str:
    """Return what a job of any kind will do and cost."""
    if isinstance(job, PackJob):
        from orchestrator.data.job import plan_pack

        return plan_pack(job)
    if isinstance(job, EvaluateJob):
        from orchestrator.evaluation.job import plan_evaluation

        return plan_evaluation(job)
    if isinstance(job, RestoreJob):
        from orchestrator.restoration.job import plan_restore

        return plan_restore(job)
    if isinstance(job, Job):
        from orchestrator.planning.plan import make_plan

        if job.loss.perceptual_network is not None:
            from orchestrator.models import perceptual_network

            perceptual_network.tensors(job.loss)
        return make_plan(job, strict=False).render()
    from orchestrator.planning.sweep_plan import plan_sweep

    return plan_sweep(job)


def plan_shapes(job: AnyJob) -> str:
    """Return cluster shapes for `job`, sorted by cost. Raises PlanError for kinds that do not train."""
    if not isinstance(job, Job) or job.model.class_ is not None:
        raise PlanError(
            f"--shapes compares the cost of training MIRAGE; {job.name} is of kind {job.kind}"
            + (" and trains a user-defined model." if isinstance(job, Job) else ".")
        )
    from orchestrator.planning import cluster_shapes
    from orchestrator.planning.plan import make_plan

    return cluster_shapes.render(make_plan(job, strict=False))
