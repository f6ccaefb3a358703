"""Commands that restore photographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import app, emit, emit_error, use_local_cluster
from orchestrator.cli.progress import ProgressReporter, report_progress

if TYPE_CHECKING:
    from orchestrator.restoration.restorer import Settings
    from orchestrator.restoration.tasks import Task, Workshop

_DEFAULT_TILE, _DEFAULT_OVERLAP = 512, 64


@app.command()
def restore(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Image files, folders with all below them, globs in quotes, or s3://bucket/prefix.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="A .safetensors file, a .ckpt of the authors, a run, or models:/NAME@ALIAS.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="A folder, s3://bucket/prefix, or for one photograph a file. Default: NAME.restored.EXT beside it.",
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Write a PNG that shows photographs before and after.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    mode: Annotated[
        str,
        typer.Option(
            help="auto; whole: at once; strips: the same in little memory; tiles: not the same, see docs/restoring.md."
        ),
    ] = "auto",
    tile: Annotated[
        int | None,
        typer.Option(
            help=f"Mode tiles with tiles of so many pixels a side, a multiple of 8 ({_DEFAULT_TILE}).",
            show_default=False,
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help=f"Pixels that neighbouring tiles share ({_DEFAULT_OVERLAP}).", show_default=False),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; all by default.", show_default=False)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what stands where a result goes. Never a photograph.")
    ] = False,
) -> None:
    """Restore photographs; size, format, depth, tags and profile stay as they are.

    What is done already is skipped, so a stopped command goes on when it is given again. Exit status 1: some
    photographs could not be restored; each is named with the reason.
    """
    use_local_cluster()
    from orchestrator.registry.resolve import find_model
    from orchestrator.restoration.restorer import choose_device, open_restorer
    from orchestrator.restoration.tasks import Workshop, finish, plan

    settings = _settings(precision, mode, tile, overlap)
    choose_device(device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    named = find_model(model)
    tasks, complaints = plan(inputs, out)
    _check_compare(compare, tasks)
    for line in complaints:
        emit_error(line)
    counts = {"restored": 0, "done": 0, "failed": len(complaints)}
    if tasks:
        workshop = Workshop(
            lambda: open_restorer(named, device, settings), settings.digest(named.digest), overwrite=overwrite
        )
        with report_progress(len(tasks)) as watch:
            shown = []
            for task in tasks:
                status = _restore(workshop, task, watch)
                counts[status] += 1
                if status != "failed":
                    shown.append((task.source, task.target))
        finish(tasks)
        if compare and shown:
            from orchestrator.restoration.comparison import MOST_ROWS, comparison

            emit(f"before and after: {comparison(shown, compare)}")
            if len(shown) > MOST_ROWS:
                emit(f"  (the first {MOST_ROWS} of {len(shown)})")
    if sum(counts.values()) > 1:
        done = f", {counts['done']} done already" if counts["done"] else ""
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        emit(f"{counts['restored']} restored{done}{failed}")
    if counts["failed"]:
        raise typer.Exit(1)


def _restore(workshop: Workshop, task: Task, watch: ProgressReporter) -> str:
    """Restore one photograph, print what became of it, and return that in a word."""
    watch.begin(str(task.source))
    (outcome,) = workshop.work([task], watch.within)
    line = {
        "failed": outcome.reason,
        "done": f"{task.target} is done already",
        "restored": f"{task.source} -> {task.target}",
    }[outcome.status]
    watch.end(line, failed=outcome.status == "failed", worked=outcome.status == "restored")
    return outcome.status


def _settings(precision: str, mode: str, tile: int | None, overlap: int | None) -> Settings:
    """Return the settings that the options mean: tiles are asked for by their size alone."""
    from orchestrator.errors import PhotoError
    from orchestrator.restoration.restorer import Settings

    tiled = tile is not None or overlap is not None
    if tiled and mode not in ("auto", "tiles"):
        raise PhotoError(f"--tile and --overlap go with --mode tiles, not with --mode {mode}.")
    side = tile or _DEFAULT_TILE
    shared = min(_DEFAULT_OVERLAP, side // 4) if overlap is None else overlap
    return Settings(precision, "tiles" if tiled else mode, side, shared)  # type: ignore[arg-type]  # checked in there


def _check_compare(compare: Path | None, tasks: list[Task]) -> None:
    from orchestrator.errors import PhotoError

    if compare is None:
        return
    if compare.suffix.lower() != ".png":
        raise PhotoError(f"--compare {compare}: the sheet is a PNG; the name must end in .png.")
    sheet = str(compare.resolve())
    for task in tasks:
        for place, what in ((task.source, "photographs"), (task.target, "results")):
            if place.identity == sheet:
                raise PhotoError(f"--compare {compare}: is one of the {what}. Choose another name.")
