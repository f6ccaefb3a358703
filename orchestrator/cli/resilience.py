"""Commands that harm a run and show that it makes no difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import JobFile, Set, app, emit, use_local_cluster

if TYPE_CHECKING:
    from orchestrator.resilience.fault_schedule import Kind

NOT_PROVEN = 1
"""Exit status when a run was not what it should have been."""


@app.command("prove-resume")
def prove_resume(
    job_file: JobFile,
    overrides: Set = None,
    kills: Annotated[int, typer.Option(min=1, help="How often a worker is killed.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the steps at which it is, and of which worker.")] = 0,
    steps: Annotated[int, typer.Option(min=2, help="How many of the job's steps are looked at.")] = 20,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of the runs; unset: the job's workers.min.")
    ] = None,
    on: Annotated[
        list[int] | None,
        typer.Option("--on", min=1, help="Number of workers that resumes; repeatable, taken in turn."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave both runs in the storage also when the proof holds.")
    ] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Work in plain processes of this machine, without Ray.")
    ] = False,
) -> None:
    """Kill a job at random steps, resume it, and prove that the result is that of a run left alone.

    On the Ray cluster of this job, or that `mirage up` runs; where there is none, in plain processes. Exit status 1
    when the result is not the same.
    """
    use_local_cluster()
    import os

    from orchestrator.config.loader import load_job
    from orchestrator.config.schema import Job
    from orchestrator.errors import PlanError
    from orchestrator.resilience import resume_proof

    job = load_job(job_file, overrides or ())
    if not isinstance(job, Job):
        raise PlanError(f"{job_file}: a job of kind {job.kind} trains nothing that could resume.")
    trial = resume_proof.Trial(kills, seed, steps, workers or job.workers.min, tuple(on or ()))
    if in_process or "RAY_ADDRESS" not in os.environ:
        proof = resume_proof.prove_resume(job, trial, emit, keep=keep)
    else:
        from orchestrator.cluster.connection import connected
        from orchestrator.resilience.ray_runs import on_ray

        with connected():
            proof = resume_proof.prove_resume(job, trial, emit, keep=keep, runs=on_ray)
    emit("\n" + proof.render())
    if not proof.holds:
        raise typer.Exit(NOT_PROVEN)


@app.command()
def chaos(
    job_file: JobFile,
    overrides: Set = None,
    kills: Annotated[int, typer.Option(min=1, help="How many blows fall.")] = 5,
    seed: Annotated[int, typer.Option(help="Of their order, their steps and whom they hit.")] = 0,
    steps: Annotated[int, typer.Option(min=10, help="How many of the job's steps they fall in.")] = 200,
    workers: Annotated[int, typer.Option(min=1, help="Workers, each on a node of its own.")] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(help="worker, driver, node, store or tracking; repeatable. Unset: all of them."),
    ] = None,
    recovery_seconds: Annotated[
        float, typer.Option(min=1, help="How long the run may take to go on after a blow.")
    ] = 300,
    fault_seconds: Annotated[float, typer.Option(min=0.1, help="How long store or tracking fail.")] = 20,
) -> None:
    """Train while workers, driver, nodes, store and tracking fail, and tell what was lost, which must be nothing.

    On this machine: a Ray cluster of several nodes, an S3 server and an MLflow server of its own, in a temporary
    folder. Exit status 1 when anything was lost.
    """
    import tempfile

    from orchestrator.config.loader import load_job
    from orchestrator.config.schema import Job
    from orchestrator.errors import PlanError
    from orchestrator.resilience.ray_chaos import chaos as harm
    from orchestrator.resilience.resume_proof import Trial, check_crew

    job = load_job(job_file, overrides or ())
    if not isinstance(job, Job):
        raise PlanError(f"{job_file}: a job of kind {job.kind} trains nothing.")
    trial, chosen = Trial(kills, seed, steps, workers), _kinds(only or ())
    check_crew(job, trial)
    if kills > steps:
        raise PlanError(
            f"{kills} blows need as many steps, and --steps is {steps}. Lower --kills or raise --steps."
        )
    with tempfile.TemporaryDirectory(prefix="mirage-chaos-") as folder:
        verdict = harm(
            job,
            trial,
            Path(folder),
            emit,
            kinds=chosen,
            recovery_seconds=recovery_seconds,
            fault_seconds=fault_seconds,
        )
    emit("\n" + verdict.render())
    if not verdict.holds:
        raise typer.Exit(NOT_PROVEN)


def _kinds(only: Sequence[str]) -> list[Kind]:
    """Return the faults that are named by their first words, all if none is."""
    from orchestrator.errors import PlanError
    from orchestrator.resilience.fault_schedule import KINDS

    known = {kind.partition(" ")[0]: kind for kind in KINDS}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise PlanError(f"--only {unknown[0]}: there are {', '.join(known)}.")
    return [known[name] for name in known if name in only] or list(KINDS)
