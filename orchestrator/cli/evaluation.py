"""Commands about what models are worth: report, panels, analyse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import Set, app, emit, use_local_cluster


@app.command()
def report(
    table: Annotated[
        list[str] | None, typer.Option("--table", "-t", help="1 to 7, B, C or D; repeatable. Default: all.")
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results", "-r", help="Folder of an evaluation; repeatable. Default: all of this project."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Published row to compare with. Default: of the same name or size.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for tables.md, .csv, .json.")
    ] = None,
) -> None:
    """Print and write the paper's tables with measured rows beside the published ones."""
    from orchestrator.evaluation.paper_report import report as make_report

    for text in make_report(table or (), results or (), out, against):
        emit(text)


@app.command()
def analyse(
    model: Annotated[
        str, typer.Argument(help="Weights of ours: a file, models:/NAME@ALIAS, a run.", show_default=False)
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files; two or more for Figures 5 and 6.")
    ],
    beside: Annotated[
        list[str] | None, typer.Option("--beside", help="Another model to set beside the first; repeatable.")
    ] = None,
    degrade: Annotated[
        list[str] | None,
        typer.Option("--degrade", "-d", help="Harm the images first: noise25, rain, haze, ...; repeatable."),
    ] = None,
    crop: Annotated[int, typer.Option(min=16, help="Side in pixels of the centre that is looked at.")] = 256,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for figures and analysis.json.")] = Path(
        "analysis"
    ),
    run: Annotated[
        str | None, typer.Option(help="MLflow run, by name or id, that figures and numbers are logged to.")
    ] = None,
) -> None:
    """Draw the paper's Figures 3 to 6 and B for a model: ranks, channel similarity, alignment."""
    use_local_cluster()
    from orchestrator.evaluation.feature_analysis import analyse as analyse_models

    for line in analyse_models([model, *(beside or ())], images, degrade or (), crop, out, run):
        emit(line)


@app.command()
def panels(
    job_files: Annotated[
        list[Path],
        typer.Argument(metavar="JOB...", help="Jobs of kind evaluate: one column each.", show_default=False),
    ],
    overrides: Set = None,
    degradation: Annotated[
        list[str] | None, typer.Option("--degradation", "-d", help="Rows; repeatable. Default: all.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", "-i", help="Id of an image; repeatable.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images of each degradation where none is named.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG file to write.")] = Path("panels.png"),
) -> None:
    """Draw degraded, each model and clean side by side with magnified details, as the paper's Figures 1 and C to G."""
    use_local_cluster()
    from orchestrator.config.job_schemas import EvaluateJob
    from orchestrator.config.loader import load_job
    from orchestrator.errors import EvaluationError
    from orchestrator.evaluation.panels import draw_panels

    jobs = []
    for file in job_files:
        job = load_job(file, overrides or ())
        if not isinstance(job, EvaluateJob):
            raise EvaluationError(
                f"{file}: panels are drawn from jobs of kind evaluate; this one is of kind {job.kind}."
            )
        jobs.append(job)
    rows = draw_panels(jobs, degradation or (), image or (), count, out)
    emit(f"{out}: {', '.join(rows)}")
