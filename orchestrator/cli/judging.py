"""Commands about what models are worth: report, panels, analyse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, say


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
    from orchestrator.judging.report import report as make_report

    for text in make_report(table or (), results or (), out, against):
        say(text)
