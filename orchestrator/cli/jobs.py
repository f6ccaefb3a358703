"""Commands that read a job file: plan, train, run, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import (
    TRAINING,
    InProcess,
    JobFile,
    Set,
    command,
    emit,
    emit_error,
    load_job_of,
    option,
    use_local_cluster,
)

if TYPE_CHECKING:
    from orchestrator.config.job_types import AnyJob

Wait = Annotated[bool, option("Wait while another process runs this job, instead of ending.", "--wait")]

STOPPED = 143
"""Exit status of a run that was stopped with a checkpoint: 128 + SIGTERM, as shells report it."""


@command(
    TRAINING,
    "mirage plan jobs/demo.yaml",
    "mirage plan jobs/5deg.yaml --shapes --prices jobs/clusters/prices.yaml",
    "mirage plan jobs/demo.yaml --resolved",
)
def plan(
    job_file: JobFile,
    overrides: Set = None,
    resolved: Annotated[
        bool, option("Print the resolved job instead: every key with its value.", "--resolved")
    ] = False,
    shapes: Annotated[
        bool, option("Compare workers, precision, engine and activation checkpointing by cost.", "--shapes")
    ] = False,
    prices: Annotated[
        Path | None, option("YAML file with the keys of the job's section `prices`.", default=False)
    ] = None,
) -> None:
    """Check a job file, and print its data, steps, memory, time and cost. Needs no Ray and no GPU."""
    from orchestrator.config.loader import load_job, overrides_from, show_job

    given = overrides_from(prices, "prices") if prices else []
    job = load_job(job_file, [*given, *(overrides or ())])
    if resolved:
        emit(show_job(job).rstrip())
        return
    use_local_cluster()
    from orchestrator.config.starter import submit_problem
    from orchestrator.runner import plan_any, plan_shapes

    emit(plan_shapes(job) if shapes else plan_any(job))
    if problem := submit_problem(job_file):
        emit_error(f"warning: {problem}")


@command(
    TRAINING, "mirage train jobs/demo.yaml", "mirage train jobs/demo.yaml --set train.steps=200 --in-process"
)
def train(
    job_file: JobFile, overrides: Set = None, in_process: InProcess = False, wait: Wait = False
) -> None:
    """Train, evaluate and register a model: run a job of kind train. Rerun it to resume."""
    from orchestrator.config.schema import Job

    run_job(load_job_of(Job, job_file, overrides), in_process=in_process, wait=wait)


@command(
    TRAINING,
    "mirage run jobs/demo.yaml",
    "ray job submit jobs/demo.yaml",
    "ray job submit --working-dir . -- jobs/5deg.yaml --set workers.max=4",
)
def run(job_file: JobFile, overrides: Set = None, in_process: InProcess = False, wait: Wait = False) -> None:
    """Run a job of any kind: pack, train, sweep, evaluate or restore. `ray job submit JOB` does it on a cluster."""
    from orchestrator.config.loader import load_job

    run_job(load_job(job_file, overrides or ()), in_process=in_process, wait=wait)


@command(TRAINING, "mirage schema > jobs/schema.json")
def schema() -> None:
    """Print the JSON Schema of job files, for completion in editors."""
    import json

    from orchestrator.config.loader import json_schema

    emit(json.dumps(json_schema(), indent=2))


def run_job(job: AnyJob, *, in_process: bool, wait: bool = False) -> None:
    """Run `job` to its end. Exits with status 143 where it was stopped with a checkpoint."""
    use_local_cluster()
    from orchestrator.cluster.local.users import using
    from orchestrator.paths import home
    from orchestrator.runner import run_any

    with using(home(), f"{job.kind} job {job.name}"):
        status = run_any(job, emit, in_process=in_process, wait=wait).status
    if status == "stopped":
        raise typer.Exit(STOPPED)
