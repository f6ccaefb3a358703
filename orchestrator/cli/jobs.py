"""Commands that read a job file: plan, train, run, schema."""

from __future__ import annotations

import shlex
import sys
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
    emit_if_possible,
    load_job_of,
    option,
    use_local_cluster,
)
from orchestrator.cli.memory_advice import memory_advice

if TYPE_CHECKING:
    from orchestrator.config.job_types import AnyJob

Wait = Annotated[bool, option("Wait while another process runs this job, instead of ending.", "--wait")]


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


@command(TRAINING, "mirage preview jobs/demo.yaml", "mirage preview jobs/demo.yaml --step 400 -o later.jpg")
def preview(
    job_file: JobFile,
    overrides: Set = None,
    out: Annotated[
        Path | None,
        option("PNG or JPEG file to write.", "--out", "-o", default=".mirage/sheets/NAME-preview.jpg"),
    ] = None,
    step: Annotated[int, option("Training step to begin at.", min=0)] = 0,
    count: Annotated[int, option("Number of samples of each degradation.", min=1, max=16)] = 4,
    pack: Annotated[bool, option("Pack the job's data first if it is not packed.", "--pack")] = False,
) -> None:
    """Draw a sheet of what training will see: its first crops, degraded and clean, in the job's own order.

    Needs the packed data, and neither Ray nor a GPU.
    """
    use_local_cluster()
    from orchestrator.config.loader import load_job
    from orchestrator.config.schema import Training
    from orchestrator.data.datasets import open_dataset
    from orchestrator.data.job import pack_if_missing
    from orchestrator.data.preview import first_draws, preview_sheet
    from orchestrator.errors import PlanError
    from orchestrator.imaging.convert import encode_picture
    from orchestrator.outputs import write_output
    from orchestrator.paths import home, shortened
    from shards.errors import ManifestError

    job = load_job(job_file, overrides or ())
    if not isinstance(job, Training):
        raise PlanError(
            f"{job_file}: is a job of kind {job.kind}, and only kinds train and sweep see samples."
        )
    if pack:
        pack_if_missing(job, emit)
    try:
        dataset = open_dataset(job)
    except ManifestError as error:
        if job.data.pack is None:
            raise
        words = shlex.join([str(job_file), *(word for text in overrides or () for word in ("--set", text))])
        raise PlanError(f"{error} To pack what the job describes: mirage preview {words} --pack") from error
    draws = first_draws(job, dataset, count, step)
    path = out or home() / "sheets" / f"{job.name}-preview.jpg"
    write_output(path, encode_picture(preview_sheet(draws), path))
    for degradation, each in draws.items():
        emit(f"{degradation:<10} positions {', '.join(f'{draw.position:,}' for draw in each)}")
    emit(f"sheet      {shortened(path)}")


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
    """Run `job` to its end. Where it was stopped, print how to continue and exit with 128 + the signal."""
    use_local_cluster()
    from orchestrator.cluster.local.users import using
    from orchestrator.masking import without_password
    from orchestrator.ownership import submission_id
    from orchestrator.paths import home
    from orchestrator.runner import run_any
    from orchestrator.signals import stop_status

    with using(home(), f"{job.kind} job {job.name}"), memory_advice(job.kind):
        status = run_any(job, emit_if_possible, in_process=in_process, wait=wait).status
    if status == "stopped":
        if not submission_id():  # a Ray job is continued by `ray job submit`
            emit_error(f"to continue: {without_password(shlex.join(['mirage', *sys.argv[1:]]))}")
        raise typer.Exit(stop_status())
