"""Record a run beside its checkpoints while its driver works, and leave its report at every end of the driver."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import OutputError, OwnedError
from orchestrator.history.record import Facts
from orchestrator.history.recorder import Recorder
from orchestrator.history.report_html import run_page
from orchestrator.history.store import REPORT, read_sheet
from orchestrator.outputs import write_output
from orchestrator.ownership import Lease
from orchestrator.run_files import LOCATION
from orchestrator.signals import Stopped
from orchestrator.tracking.background import Tracker
from orchestrator.training.context import RunContext
from orchestrator.version import code_version
from shards.errors import ShardsError

log = logging.getLogger(__name__)


def facts_of(run: RunContext) -> Facts:
    """Return what the report says of the job, its data and its plan."""
    tracked = f"run {run.tracking_id or 'unknown'} at {run.tracking_uri}"
    return Facts.of(run.location.run_id, run.location.uri, run.job, run.plan, run.dataset, tracked)


@contextmanager
def recorded(run: RunContext, tracker: Tracker, lease: Lease, *, in_process: bool) -> Iterator[Recorder]:
    """Record the run during the block, which closes the recorder at the end of a finished run.

    Otherwise the run has stopped, or failed if the block raises. Every end leaves a report in the run's folders and, of
    a run that has not finished, in MLflow; `publish` sends it the others.
    """
    location = run.location
    with _surviving():
        write_output(location.folder / LOCATION, f"{location.uri}\n")
    recorder = Recorder(location.store, facts_of(run), lease, code_version(), int(in_process))
    try:
        yield recorder
    except OwnedError:
        recorder.abandon()
        raise
    except BaseException as error:
        stopped = isinstance(error, Stopped)
        reason = "" if stopped else " ".join(str(error).split()) or type(error).__name__
        if recorder.close("stopped" if stopped else "failed", reason):
            _leave_report(run, tracker, recorder)
        raise
    if recorder.close("stopped"):
        _leave_report(run, tracker, recorder)


def _leave_report(run: RunContext, tracker: Tracker, recorder: Recorder) -> None:
    """Write the report of a run that has not finished; copy that of any run to its folder in the store."""
    file, store = run.location.folder / REPORT, run.location.store
    with _surviving():
        if recorder.history.state != "finished":
            content = run_page(recorder.history, sheet=read_sheet(store)).encode()
            write_output(file, content)
            tracker.artifact(REPORT, content)
        store.delete(REPORT)  # objects are written once
        store.write_file(REPORT, file)


@contextmanager
def _surviving() -> Iterator[None]:
    """Log an error of the store or of the disk: a run does not fail for its report."""
    try:
        yield
    except (ShardsError, OutputError, OSError) as error:
        log.warning("the report of the run is not complete: %s", error)
