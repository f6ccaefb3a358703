"""Commands about finished and running sweeps: report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import TRAINING, Command, app, argument, emit, epilog, option, use_local_cluster

sweep = typer.Typer(
    no_args_is_help=True,
    help="Report on a sweep, or write the job file of its best trial. `mirage run` starts one.",
)
app.add_typer(sweep, name="sweep", rich_help_panel=TRAINING)

Run = Annotated[str, argument("A sweep: its id, its name, or its folder in the store.")]


@sweep.command(cls=Command, epilog=epilog("mirage sweep report SWEEP"))
def report(
    run: Run,
    out: Annotated[
        Path | None, option("Folder to write.", "--out", "-o", default=".mirage/sweeps/ID")
    ] = None,
) -> None:
    """Write report.md and report.html, also of a running sweep, and print the leaderboard."""
    use_local_cluster()
    from orchestrator.sweeps.job import report_folder
    from orchestrator.sweeps.lookup import find_sweep
    from orchestrator.sweeps.report import write_report

    found = find_sweep(run)
    folder = out or report_folder(found.name)
    write_report(found.job, found.name, found.events, folder)
    emit((folder / "leaderboard.txt").read_text())
    emit(f"written: {folder / 'report.html'}, report.md")


@sweep.command(cls=Command, epilog=epilog("mirage sweep export SWEEP -o jobs/best.yaml"))
def export(
    run: Run,
    out: Annotated[Path, option("Job file to write.", "--out", "-o", default=False)],
    trial: Annotated[
        int | None, option("Trial to export instead of the best one.", default=False, min=0)
    ] = None,
) -> None:
    """Write the job of the best trial as a job file, which trains, evaluates and registers a model."""
    use_local_cluster()
    from orchestrator.sweeps.best_trial import export_job
    from orchestrator.sweeps.lookup import find_sweep
    from orchestrator.sweeps.trial_table import table_of

    found = find_sweep(run)
    emit(export_job(found.job, found.name, table_of(found.events), out, trial))
