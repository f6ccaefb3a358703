"""The command that restores photographs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import (
    USE,
    Trust,
    argument,
    command,
    complete_model,
    emit,
    emit_error,
    option,
    use_local_cluster,
)
from orchestrator.cli.progress import ProgressReporter, report_progress
from orchestrator.number_limits import MAX_THREADS

if TYPE_CHECKING:
    from orchestrator.restoration.restorer import RestoreSettings
    from orchestrator.restoration.tasks import RestoreOutcome, RestoreTask, RestoreWorker, Status

_DEFAULT_TILE, _DEFAULT_OVERLAP = 512, 64


@command(
    USE,
    "mirage restore photo.jpg -m models:/mirage-demo@candidate",
    "mirage restore photos -o restored -m weights.safetensors --sheet before-after.png",
)
def restore(
    inputs: Annotated[
        list[str],
        argument(
            "Image files, folders with everything below them, globs in quotes, or s3://bucket/prefix.",
            metavar="INPUT...",
        ),
    ],
    model: Annotated[
        str,
        option(
            "A .safetensors file, a .ckpt of the authors, a run, or models:/NAME@ALIAS.",
            "--model",
            "-m",
            default=False,
            autocompletion=complete_model,
        ),
    ],
    trust: Trust = None,
    out: Annotated[
        str | None,
        option(
            "A folder or s3://bucket/prefix; for one photograph also a file.",
            "--out",
            "-o",
            default="NAME.restored.EXT beside the photograph",
        ),
    ] = None,
    compare: Annotated[
        Path | None, option("PNG file to write with photographs before and after.", "--sheet", default=False)
    ] = None,
    overwrite: Annotated[
        bool, option("Replace existing results. Photographs are never replaced.", "--overwrite")
    ] = False,
    device: Annotated[str, option("Device.", metavar="auto|cpu|cuda")] = "auto",
    precision: Annotated[str, option("Precision.", metavar="fp32|bf16")] = "fp32",
    threads: Annotated[
        int | None, option("Number of CPU threads.", default="all", min=1, max=MAX_THREADS)
    ] = None,
    mode: Annotated[
        str,
        option(
            "whole: the photograph at once. strips: the same result in little memory. tiles: a different result, "
            "see docs/restoring.md.",
            metavar="auto|whole|strips|tiles",
        ),
    ] = "auto",
    tile: Annotated[
        int | None,
        option(
            "Side of a tile in pixels, a multiple of 8. Selects --mode tiles.", default=str(_DEFAULT_TILE)
        ),
    ] = None,
    overlap: Annotated[
        int | None, option("Pixels that adjacent tiles share.", default=str(_DEFAULT_OVERLAP))
    ] = None,
) -> None:
    """Restore photographs. Size, format, bit depth, metadata and colour profile are kept.

    Resumable: finished results are skipped. Exit status 1 when photographs could not be restored; each is listed with
    the reason.
    """
    use_local_cluster()
    from orchestrator.registry.resolve import find_model
    from orchestrator.restoration.restorer import Restorer, choose_device
    from orchestrator.restoration.tasks import RestoreWorker, merge_indexes, plan, summary

    settings = _settings(precision, mode, tile, overlap)
    target = choose_device(device)
    if threads:
        import torch

        torch.set_num_threads(threads)
    named = find_model(model, trust_code=trust or ())
    named.require_consent()
    work = plan(inputs, out)
    tasks, problems = work.tasks, work.problems
    _check_compare(compare, tasks)
    for line in problems:
        emit_error(line)
    counts: Counter[Status] = Counter({"failed": len(problems)})
    if tasks:
        worker = RestoreWorker(
            lambda: Restorer(named.load(target), settings), settings.digest(named.digest), overwrite=overwrite
        )
        shown = []
        with report_progress(len(tasks)) as reporter:
            for outcome in _outcomes(worker, tasks, reporter):
                counts[outcome.status] += 1
                if outcome.status != "failed":
                    shown.append((outcome.task.source, outcome.task.target))
        merge_indexes(tasks)
        if compare and shown:
            from orchestrator.restoration.comparison import MAX_ROWS, comparison

            emit(f"before and after: {comparison(shown, compare)}")
            if len(shown) > MAX_ROWS:
                emit(f"  (the first {MAX_ROWS} of {len(shown)})")
    if work.others:
        emit(work.named_others())
    if counts.total() > 1:
        emit(summary(counts))
    if counts["failed"]:
        raise typer.Exit(1)


def _outcomes(
    worker: RestoreWorker, tasks: list[RestoreTask], reporter: ProgressReporter
) -> Iterator[RestoreOutcome]:
    """Restore photographs, print and yield each outcome. On Ctrl-C, write what is already restored."""
    try:
        for task in tasks:
            reporter.start(str(task.source))
            yield from _reported(worker.run([task], reporter.advance), reporter)
    except BaseException:
        _reported(worker.finish(), reporter)
        raise
    yield from _reported(worker.finish(), reporter)


def _reported(outcomes: list[RestoreOutcome], reporter: ProgressReporter) -> list[RestoreOutcome]:
    """Print a line per outcome, with what its result does not keep."""
    for outcome in outcomes:
        task = outcome.task
        line = {
            "failed": outcome.reason,
            "skipped": f"{task.target} is already restored",
            "restored": f"{task.source} -> {task.target}",
        }[outcome.status]
        reporter.finish(line, failed=outcome.status == "failed", worked=outcome.status == "restored")
        if outcome.note:
            emit_error(outcome.note)
    return outcomes


def _settings(precision: str, mode: str, tile: int | None, overlap: int | None) -> RestoreSettings:
    """Return the settings of the options. --tile or --overlap select mode tiles."""
    from orchestrator.errors import PhotoError
    from orchestrator.restoration.restorer import RestoreSettings

    tiled = tile is not None or overlap is not None
    if tiled and mode not in ("auto", "tiles"):
        raise PhotoError(f"--tile and --overlap go with --mode tiles, not with --mode {mode}.")
    side = _DEFAULT_TILE if tile is None else tile
    shared = min(_DEFAULT_OVERLAP, side // 4) if overlap is None else overlap
    return RestoreSettings(precision, "tiles" if tiled else mode, side, shared)  # type: ignore[arg-type]  # checked in there


def _check_compare(compare: Path | None, tasks: list[RestoreTask]) -> None:
    from orchestrator.errors import PhotoError

    if compare is None:
        return
    if compare.suffix.lower() != ".png":
        raise PhotoError(f"--sheet {compare}: the sheet is a PNG file. Its name must end in .png.")
    sheet = str(compare.resolve())
    for task in tasks:
        for location, what in ((task.source, "photographs"), (task.target, "results")):
            if location.identity == sheet:
                raise PhotoError(f"--sheet {compare} is one of the {what}. Choose another name.")
