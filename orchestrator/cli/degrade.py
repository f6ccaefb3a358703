"""The command that degrades photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import (
    DATA,
    argument,
    command,
    complete_job_file,
    emit,
    emit_error,
    option,
    seed_option,
)


def _complete_pipeline(incomplete: str) -> list[str]:
    from shards.degradations.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


@command(
    DATA,
    "mirage degrade photo.jpg --pipeline real_esrgan -o degraded",
    "mirage degrade photos --pipeline phone --job my-job.yaml --seed 1 -o test-set",
)
def degrade(
    inputs: Annotated[
        list[str],
        argument(
            "Image files, folders with everything below them, globs in quotes, or s3://bucket/prefix.",
            metavar="INPUT...",
        ),
    ],
    pipeline: Annotated[
        str,
        option(
            "A pipeline of the job, or a preset: docs/degradations.md lists them.",
            "--pipeline",
            "-p",
            default=False,
            autocompletion=_complete_pipeline,
        ),
    ],
    out: Annotated[
        str,
        option(
            "A folder or s3://bucket/prefix; for one photograph also a .png file.",
            "--out",
            "-o",
            default=False,
        ),
    ],
    job: Annotated[
        Path | None,
        option("A job file that has the pipeline.", default=False, autocompletion=complete_job_file),
    ] = None,
    seed: Annotated[int, seed_option("Random seed of the draws.")] = 0,
    overwrite: Annotated[
        bool, option("Replace existing results. Photographs are never replaced.", "--overwrite")
    ] = False,
) -> None:
    """Degrade photographs by a pipeline of a job or a preset, to inspect them or to build a test set of PNG files.

    The random parameters of a photograph depend on its name and the seed. Exit status 1 when photographs could
    not be degraded; each is listed with the reason.
    """
    from orchestrator.config.job_schemas import EvaluateJob
    from orchestrator.config.loader import load_job
    from orchestrator.config.pipelines import pipelines_of
    from orchestrator.config.schema import Training
    from orchestrator.restoration.degrading import degrade_photographs, pipeline_named

    read = load_job(job) if job else None
    chosen = pipeline_named(pipeline, pipelines_of(read) if isinstance(read, Training | EvaluateJob) else {})
    failed = False
    for outcome in degrade_photographs(inputs, out, chosen, seed, overwrite=overwrite):
        problem = outcome if isinstance(outcome, str) else outcome.problem
        failed |= bool(problem)
        if isinstance(outcome, str) or problem:
            emit_error(problem)
        else:
            emit(f"{outcome.target}: {outcome.steps or 'as it was'}")
    if failed:
        raise typer.Exit(1)
