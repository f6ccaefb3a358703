"""Commands that evaluate models: evaluate, report, panels, analyse, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import (
    EVALUATION,
    InProcess,
    JobFile,
    Set,
    argument,
    command,
    complete_job_file,
    complete_model,
    emit,
    emit_error,
    load_job_of,
    option,
    use_local_cluster,
)
from orchestrator.cli.jobs import run_job


@command(
    EVALUATION,
    "mirage evaluate jobs/evaluate/demo.yaml",
    "mirage evaluate jobs/evaluate/demo.yaml --set model.weights=weights.safetensors --in-process",
)
def evaluate(job_file: JobFile, overrides: Set = None, in_process: InProcess = False) -> None:
    """Measure a model on benchmarks: run a job of kind evaluate. Rerun it to resume."""
    from orchestrator.config.job_schemas import EvaluateJob

    run_job(load_job_of(EvaluateJob, job_file, overrides), in_process=in_process)


@command(EVALUATION, "mirage report", "mirage report --table 2 --results .mirage/evaluations/EVALUATION")
def report(
    table: Annotated[
        list[str] | None,
        option("Table of the MIRAGE paper: 1 to 7, B, C or D. Repeatable.", "--table", "-t", default="all"),
    ] = None,
    results: Annotated[
        list[Path] | None,
        option("Folder of an evaluation. Repeatable.", "--results", "-r", default="all of this project"),
    ] = None,
    compare_with: Annotated[
        str | None, option("Published row to compare with.", default="the row of the same name or size")
    ] = None,
    out: Annotated[
        Path | None, option("Folder for tables.md, .csv and .json.", "--out", "-o", default=".mirage/report")
    ] = None,
) -> None:
    """Print and write the MIRAGE paper's tables, with measured rows beside the published ones."""
    from orchestrator.evaluation.paper_report import report as make_report

    for text in make_report(table or (), results or (), out, compare_with):
        emit(text)


@command(EVALUATION, "mirage panels jobs/evaluate/demo.yaml -d rain -d haze -o panels.png")
def panels(
    job_files: Annotated[
        list[Path],
        argument(
            "Jobs of kind evaluate: one column each.", metavar="JOB...", autocompletion=complete_job_file
        ),
    ],
    overrides: Set = None,
    degradation: Annotated[
        list[str] | None, option("Degradation to show. Repeatable.", "--degradation", "-d", default="all")
    ] = None,
    image: Annotated[
        list[str] | None,
        option("Id of an image to show. Repeatable.", "--image", "-i", default="--count of each"),
    ] = None,
    count: Annotated[int, option("Number of images of each degradation.", min=1)] = 1,
    out: Annotated[Path, option("PNG file to write.", "--out", "-o")] = Path("panels.png"),
) -> None:
    """Draw degraded, restored and clean images with magnified details, as the paper's Figures 1 and C to G."""
    use_local_cluster()
    from orchestrator.config.job_schemas import EvaluateJob
    from orchestrator.evaluation.panels import draw_panels

    jobs = [load_job_of(EvaluateJob, file, overrides) for file in job_files]
    emit(f"{out}: {', '.join(draw_panels(jobs, degradation or (), image or (), count, out))}")


@command(
    EVALUATION,
    "mirage analyse models:/mirage-5deg@champion a.png b.png -d rain -o analysis",
    "mirage analyse mine.safetensors a.png --compare-with models:/mirage-5deg@champion",
)
def analyse(
    model: Annotated[
        str, argument("MIRAGE weights: a file, models:/NAME@ALIAS or a run.", autocompletion=complete_model)
    ],
    images: Annotated[
        list[Path], argument("Image files. Figures 5 and 6 need two or more.", metavar="IMAGE...")
    ],
    compare_with: Annotated[
        list[str] | None, option("Another model to compare with. Repeatable.", default=False)
    ] = None,
    degrade: Annotated[
        list[str] | None,
        option(
            "Degradation to apply first: noise25, rain, haze, ... Repeatable.",
            "--degradation",
            "-d",
            default="none",
        ),
    ] = None,
    crop: Annotated[int, option("Side of the analysed centre crop in pixels.", min=16)] = 256,
    out: Annotated[Path, option("Folder for figures and analysis.json.", "--out", "-o")] = Path("analysis"),
    run: Annotated[
        str | None, option("MLflow run, by name or id, to log figures and numbers to.", default=False)
    ] = None,
) -> None:
    """Analyse a model's features as the MIRAGE paper's Figures 3 to 6 and B: ranks, channel similarity, alignment."""
    use_local_cluster()
    from orchestrator.evaluation.feature_analysis import analyse as analyse_models
    from orchestrator.progress import progress

    models = [model, *(compare_with or ())]
    with progress(emit_error, "analysing") as (advance,):
        lines = list(analyse_models(models, images, degrade or (), crop, out, run, advance))
    for line in lines:
        emit(line)


@command(
    EVALUATION,
    "mirage bench model --help",
    "mirage bench scaling --figure scaling.png",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def bench(context: typer.Context) -> None:
    """Measure speed and growth. `mirage bench --help` lists the measurements."""
    from orchestrator.bench.__main__ import main as run_bench

    raise typer.Exit(run_bench(context.args))
