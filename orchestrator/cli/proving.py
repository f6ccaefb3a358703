"""Commands that harm a run and show that it makes no difference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import JobFile, Set, app, say, use_local_cluster

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
) -> None:
    """Kill a job at random steps, resume it, and prove that the result is that of a run left alone.

    On plain processes of this machine, without Ray. Exit status 1 when it is not the same.
    """
    use_local_cluster()
    from orchestrator import prove
    from orchestrator.config import Job
    from orchestrator.errors import PlanError
    from orchestrator.jobfile import load_job

    job = load_job(job_file, overrides or ())
    if not isinstance(job, Job):
        raise PlanError(f"{job_file}: a job of kind {job.kind} trains nothing that could resume.")
    trial = prove.Trial(kills, seed, steps, workers or job.workers.min, tuple(on or ()))
    proof = prove.prove_resume(job, trial, say, keep=keep)
    say("\n" + proof.render())
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
    recovery_seconds: Annotated[
        float, typer.Option(help="How long the run may take to go on after a blow.")
    ] = 300,
) -> None:
    """Train while workers, driver, nodes, store and tracking fail, and tell what was lost, which must be nothing.

    On this machine: a Ray cluster of several nodes, an S3 server and an MLflow server of its own, in a temporary
    folder. Exit status 1 when anything was lost.
    """
    import tempfile

    from orchestrator.cluster.harm import chaos as harm
    from orchestrator.config import Job
    from orchestrator.errors import PlanError
    from orchestrator.jobfile import load_job
    from orchestrator.prove import Trial

    job = load_job(job_file, overrides or ())
    if not isinstance(job, Job):
        raise PlanError(f"{job_file}: a job of kind {job.kind} trains nothing.")
    with tempfile.TemporaryDirectory(prefix="mirage-chaos-") as folder:
        verdict = harm(job, Trial(kills, seed, steps, workers), Path(folder), say, recovery_seconds)
    say("\n" + verdict.render())
    if not verdict.holds:
        raise typer.Exit(NOT_PROVEN)
