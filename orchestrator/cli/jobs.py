"""Commands about job files: run, plan, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import JobFile, Set, app, emit, use_local_cluster

STOPPED = 143
"""Exit status of a run that was asked to stop and left a checkpoint: 128 + SIGTERM, as a shell would say."""


@app.command()
def run(
    job_file: JobFile,
    overrides: Set = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Work in this process, without Ray, with one worker.")
    ] = False,
) -> None:
    """Run a job of any kind, for example train. `ray job submit JOB_FILE` calls this on the cluster."""
    use_local_cluster()
    from orchestrator.config.loader import load_job
    from orchestrator.runner import run_any

    outcome = run_any(load_job(job_file, overrides or ()), emit, in_process=in_process)
    if outcome.status == "stopped":
        raise typer.Exit(STOPPED)


@app.command()
def plan(
    job_file: JobFile,
    overrides: Set = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the resolved job file instead.")
    ] = False,
    shapes: Annotated[
        bool, typer.Option("--shapes", help="Compare workers, precision, engine and recomputation by cost.")
    ] = False,
    prices: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with the keys of the job's section `prices`, for example beside a cluster's."
        ),
    ] = None,
) -> None:
    """Say what a job will do and take: samples, steps, memory, hours, money. Needs no Ray and no GPU."""
    from orchestrator.config.loader import dump_job, load_job, overrides_from

    charged = overrides_from(prices, "prices") if prices else []
    job = load_job(job_file, [*charged, *(overrides or ())])
    if resolved:
        emit(dump_job(job).rstrip())
        return
    use_local_cluster()
    from orchestrator.runner import plan_any, plan_shapes

    emit(plan_shapes(job) if shapes else plan_any(job))


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for completion in editors."""
    import json

    from orchestrator.config.loader import json_schema

    emit(json.dumps(json_schema(), indent=2))
