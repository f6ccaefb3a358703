"""Commands that look at runs: runs, watch."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import (
    TRAINING,
    argument,
    command,
    complete_run_id,
    emit,
    emit_error,
    option,
    use_local_cluster,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.history.record import Status
    from orchestrator.maintenance.run_list import Run

_POLL_SECONDS = 2.0
_RETRY_SECONDS = 60.0
"""Time without an answer of the store after which the watching ends."""
_STOPPED = 143
"""Exit status for a run that was stopped: 128 + SIGTERM, as shells report it."""


@command(TRAINING, "mirage runs", "mirage runs s3://mirage --json")
def runs(
    storage: Annotated[
        str | None,
        typer.Argument(
            help="Storage of the runs: s3://bucket or a folder.", show_default="those of this folder's runs"
        ),
    ] = None,
    as_json: Annotated[bool, option("Print one JSON object per run.", "--json")] = False,
    trials: Annotated[bool, option("Also list the trials of sweeps.", "--trials")] = False,
) -> None:
    """List runs with their state, step, PSNR, time and a small curve of the validation PSNR, or of the loss."""
    use_local_cluster()
    import json
    from dataclasses import asdict

    from orchestrator.errors import PlanError
    from orchestrator.maintenance import run_list
    from shards.errors import ShardsError

    asked = [storage] if storage is not None else run_list.storages()
    if not asked:
        raise PlanError("no run was started in this folder yet. Name a storage: mirage runs s3://bucket")
    found = []
    for each in asked:
        try:
            found += run_list.list_runs(each, trials=trials)
        except ShardsError as error:
            if storage is not None:
                raise
            emit_error(f"{each} is left out: {error}")
    if as_json:
        for run in found:
            emit(json.dumps(asdict(run)))
    elif found:
        for line in run_list.table(found, time.time()):
            emit(line)
        for run in found:
            if run.reason:
                emit(f"{run.run}: {run.reason}")
    else:
        emit(f"no runs in {', '.join(asked)}")


@command(TRAINING, "mirage watch RUN", "mirage watch RUN --report report.html")
def watch(
    run: Annotated[
        str,
        argument(
            "A run: its id, the name of its job, or its folder in the store.", autocompletion=complete_run_id
        ),
    ],
    report: Annotated[
        Path | None,
        option("Write the report of the run as it is now to this HTML file, and end.", default=False),
    ] = None,
) -> None:
    """Follow a run on any machine: loss, PSNR, speed, time left and what happened last. Ctrl-C ends only the watching.

    Ends with the run: with status 0 if it has finished, 143 if it was stopped, 1 if it failed or was lost.
    """
    use_local_cluster()
    from orchestrator.maintenance import run_list
    from orchestrator.outputs import write_output

    folder = run_list.find_run(run)
    if report is not None:
        emit(f"report     {write_output(report, run_list.report_of(folder))}")
        return
    try:
        state = _follow(lambda: run_list.read_run(folder))
    except KeyboardInterrupt:
        emit("stopped watching; the run continues")
        return
    raise typer.Exit({"finished": 0, "stopped": _STOPPED}.get(state, 1))


def _follow(read: Callable[[], tuple[Run, Status | None]]) -> str:
    """Show the run until it ends; return its state."""
    from shards.errors import StoreError

    show: Callable[[Run, Status | None], None]
    answered = time.monotonic()
    with _live() if sys.stdout.isatty() else nullcontext(_Lines()) as show:
        while True:
            try:
                run, status = read()
            except StoreError:
                if time.monotonic() - answered > _RETRY_SECONDS:
                    raise
                time.sleep(_POLL_SECONDS)
                continue
            answered = time.monotonic()
            show(run, status)
            if run.state != "training":
                return run.state
            time.sleep(_POLL_SECONDS)


class _Lines:
    """Prints a line for each change, and one for each event."""

    def __init__(self) -> None:
        self._last = ""
        self._shown: set[tuple[float, str]] = set()

    def __call__(self, run: Run, status: Status | None) -> None:
        for note in status.notes if status else ():
            if (note.unix, note.text) not in self._shown:
                emit(f"step {note.step}: {note.text}")
        self._shown |= {(note.unix, note.text) for note in status.notes} if status else set()
        line = ", ".join(f"{name} {value}" for name, value in _values(run, status))
        if line != self._last:
            emit(f"{run.run}: {line}")
            self._last = line


@contextmanager
def _live() -> Iterator[Callable[[Run, Status | None], None]]:
    """Yield a function that draws a run in place."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from orchestrator.history.chart import sparkline

    with Live(auto_refresh=False) as live:

        def show(run: Run, status: Status | None) -> None:
            values = Table.grid(padding=(0, 2))
            for name, value in _values(run, status):
                values.add_row(Text(name, "dim"), Text(value))
            if run.curve:
                values.add_row(Text(run.curve_of, "dim"), Text(sparkline(run.curve)))
            bar = ProgressBar(total=run.total_steps or None, completed=run.step or 0, width=60)
            notes = [
                Text(f"step {note.step}: {note.text}", "dim") for note in (status.notes if status else ())
            ]
            live.update(Group(Text(run.run, "bold"), bar, values, *notes), refresh=True)

        yield show


def _values(run: Run, status: Status | None) -> Iterator[tuple[str, str]]:
    """Yield name and text of what is known."""
    from orchestrator.console import count, duration

    yield "state", run.state + (f": {run.reason}" if run.reason else "")
    if run.step is not None:
        yield "step", f"{run.step:,}" + (f" of {run.total_steps:,}" if run.total_steps is not None else "")
    if run.loss is not None:
        yield "loss", f"{run.loss:.4f}"
    if run.psnr is not None:
        yield "PSNR", f"{run.psnr:.2f} dB"
    if status is None:
        return
    if status.images_per_second is not None:
        yield "speed", f"{status.images_per_second:.1f} images/s"
    if status.data_wait is not None:
        yield "waiting for data", f"{100 * status.data_wait:.1f} %"
    if run.state == "training":
        yield "workers", count(status.workers, "worker") if status.workers else "starting"
        if status.seconds_left is not None:
            yield "left", duration(status.seconds_left)
    yield "time", duration(status.seconds)
    if status.model:
        yield "model", status.model
