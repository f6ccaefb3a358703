"""List and find the runs of a storage from the store alone, so that it works without MLflow.

Of each run one small object is read: its status; of a run of an earlier version its result or its newest checkpoint's
record. A run whose driver said nothing when it ended has one more: the claim of that driver.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator import ownership, tables
from orchestrator.console import duration
from orchestrator.errors import CheckpointError, DamagedResultError, PlanError, TrackingError
from orchestrator.evaluation.score_table import legend
from orchestrator.evaluation.scores import from_records, summarise
from orchestrator.history.chart import sparkline
from orchestrator.history.curve import finite
from orchestrator.history.record import PSNR, Status, thinned
from orchestrator.history.report_html import run_page
from orchestrator.history.store import STATUS, read_history, read_sheet, read_status
from orchestrator.paths import absolute_uri, below, home
from orchestrator.run_files import LOCATION, RESULT, RUN_TAG, read_result
from orchestrator.tracking import runs
from orchestrator.tracking.uri import resolve_tracking_uri, sqlite_file
from orchestrator.training.checkpoint import RECORD_KEY, read_record, step_of
from orchestrator.training.result import run_result
from shards.errors import MissingObjectError, ShardsError
from shards.store import Store, open_store

_ID = re.compile(r"(?P<job>.+)-[0-9a-f]{10}")
TRIAL = re.compile(r"(?P<sweep>.+-[0-9a-f]{10})-t\d{3,}(?:-g\d+)?-[0-9a-f]{10}")
"""Id of the run of a sweep's trial."""
_THREADS = 8
_POINTS = 16


@dataclass(frozen=True)
class Run:
    """One run of a list."""

    run: str
    job: str
    folder: str
    state: str
    """training, stopped, finished, failed, lost: its driver ended without recording how; or unknown."""
    step: int | None
    total_steps: int | None
    psnr: float | None
    """Average of whole photographs if it has finished, else of the newest validation [dB]."""
    loss: float | None
    seconds: float | None
    """Time of all its processes."""
    began_unix: float | None
    seen_unix: float | None
    """Time of its newest sign of life."""
    model: str
    reason: str
    curve_of: str
    curve: Sequence[float | None]


def list_runs(storage: str, *, trials: bool = False) -> list[Run]:
    """Return the runs of a storage, the newest last, and those of sweeps' `trials`. Raises ShardsError."""
    root = open_store(below(storage, "runs"))
    keys: dict[str, list[str]] = defaultdict(list)
    for key in root.list():
        run, _, rest = key.partition("/")
        if _ID.fullmatch(run) and (trials or not TRIAL.fullmatch(run)):
            keys[run].append(rest)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda run: _run(f"{root.uri}/{run}", run, keys[run]), keys))
    return sorted(found, key=lambda run: run.seen_unix or 0.0)


def storages() -> list[str]:
    """Return the storages of the runs that drivers of this project's folder have started."""
    found: dict[str, None] = {}
    for file in sorted((home() / "runs").glob(f"*/{LOCATION}")):
        with suppress(OSError, UnicodeDecodeError):
            found[file.read_text().strip().rpartition("/runs/")[0]] = None
    return [storage for storage in found if storage]


def find_run(name: str) -> str:
    """Return the folder in the store of a run by its id, the name of its job, or its folder. Raises PlanError.

    Of several runs of a job, the one that was started last on this machine is meant.
    """
    if "/" in name:
        return absolute_uri(name)
    files = [*(home() / "runs").glob(f"{name}/{LOCATION}"), *(home() / "runs").glob(f"{name}-*/{LOCATION}")]
    named = [file for file in files if file.parent.name == name or _job(file.parent.name) == name]
    if named:
        return max(named, key=lambda file: file.stat().st_mtime_ns).read_text().strip()
    uri = resolve_tracking_uri()
    database = sqlite_file(uri)
    with suppress(TrackingError):
        found = runs.find_run(uri, RUN_TAG, name) if database is None or database.is_file() else None
        if found is not None and "storage" in found.params and RUN_TAG in found.tags:
            return f"{below(found.params['storage'], 'runs')}/{found.tags[RUN_TAG]}"
    raise PlanError(
        f"{name}: no run of that name was started here. List runs: mirage runs. Or give its folder."
    )


def read_run(folder: str) -> tuple[Run, Status | None]:
    """Return the state of the run in a folder of a store, and what it recorded. Raises PlanError if there is none."""
    store = open_store(folder)
    status = read_status(store)
    keys = [RESULT] if status and store.exists(RESULT) else [] if status else store.list()
    if not (status or keys):
        raise PlanError(f"{folder}: holds no run. List the runs of a storage: mirage runs STORAGE")
    return _run(folder, folder.rstrip("/").rpartition("/")[2], keys, status), status


def report_of(folder: str) -> str:
    """Return report.html of a run as its record is now. Raises PlanError if there is no record."""
    store = open_store(folder)
    history = read_history(store)
    if history is None:
        raise PlanError(f"{folder}: holds no record of a run. Runs of earlier versions have none.")
    try:
        result = run_result(store)
    except (MissingObjectError, DamagedResultError):
        return run_page(history, sheet=read_sheet(store))
    facts, measured = history.facts, from_records(result["scores"])
    scores = summarise(measured, facts.degradations)
    images = max(score.n for score in scores[:-1])
    words = legend(facts.protocol, facts.recipe, "EMA" if result["averaged"] else "raw", images)
    return run_page(history, scores, words, read_sheet(store))


def table(found: Iterable[Run], now: float) -> list[str]:
    """Return runs as the lines of a table."""
    head = ("run", "state", "step", "PSNR", "time", "last sign", "curve")
    return tables.aligned(head, [_cells(run, now) for run in found], "<<>>>><")


def _run(folder: str, run: str, keys: Sequence[str], status: Status | None = None) -> Run:
    store = open_store(folder)
    job = _job(run)
    try:
        status = status or (read_status(store) if STATUS in keys else None)
        if status is not None:
            return _of_status(store, folder, status, finished=RESULT in keys)
        if RESULT in keys:
            return _of_result(store, folder, run, job)
        records = sorted((match[1] for match in map(RECORD_KEY.fullmatch, keys) if match), key=step_of)
        if records:
            return _of_checkpoint(store, folder, run, job, records[-1])
        return replace(
            _NOTHING,
            run=run,
            job=job,
            folder=folder,
            state="lost" if ownership.is_abandoned(store) else "training",
        )
    except (ShardsError, CheckpointError, DamagedResultError) as error:
        return replace(_NOTHING, run=run, job=job, folder=folder, reason=str(error))


_NOTHING = Run(*("", "", "", "unknown"), *(None, None, None, None, None, None, None), *("", "", PSNR), ())


def _of_status(store: Store, folder: str, status: Status, *, finished: bool) -> Run:
    state: str = "finished" if finished else status.state
    if state == "training" and ownership.is_abandoned(store):
        state = "lost"
    return Run(
        run=status.run,
        job=status.name,
        folder=folder,
        state=state,
        reason="" if state == "finished" else status.reason,
        **{name: getattr(status, name) for name in _SHARED},
    )


_SHARED = (
    "step",
    "total_steps",
    "psnr",
    "loss",
    "seconds",
    "began_unix",
    "seen_unix",
    "model",
    "curve_of",
    "curve",
)


def _of_result(store: Store, folder: str, run: str, job: str) -> Run:
    result = read_result(store, ("step", "scores"))
    psnr: dict[str, list[float]] = defaultdict(list)
    for score in result["scores"]:
        psnr[score["degradation"]].append(score["psnr"])
    means = [sum(each) / len(each) for each in psnr.values()]
    return replace(
        _NOTHING,
        run=run,
        job=job,
        folder=folder,
        state="finished",
        step=result["step"],
        total_steps=result["step"],
        psnr=finite(sum(means) / len(means)) if means else None,
        seen_unix=result.get("finished_unix"),
    )


def _of_checkpoint(store: Store, folder: str, run: str, job: str, name: str) -> Run:
    record = read_record(store, f"checkpoints/{name}.json")
    psnr = record["metrics"].get(PSNR)
    state = "stopped" if ownership.is_abandoned(store) else "training"
    return replace(
        _NOTHING,
        run=run,
        job=job,
        folder=folder,
        state=state,
        step=record["step"],
        psnr=None if psnr is None else finite(psnr),
        seen_unix=record.get("written_unix"),
    )


def _job(run: str) -> str:
    match = _ID.fullmatch(run)
    return match["job"] if match else run


def _cells(run: Run, now: float) -> tuple[str, ...]:
    steps = "" if run.step is None else f"{run.step:,}"
    total = f" / {run.total_steps:,}" if run.total_steps is not None else ""
    return (
        run.run,
        run.state,
        f"{steps}{total}",
        "" if run.psnr is None else f"{run.psnr:.2f} dB",
        "" if run.seconds is None else duration(run.seconds),
        "" if run.seen_unix is None else _ago(now - run.seen_unix),
        sparkline(thinned(run.curve, _POINTS)),
    )


def _ago(seconds: float) -> str:
    if seconds < 90:
        return f"{max(0, seconds):.0f} s ago"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min ago"
    return f"{minutes / 60:.0f} h ago" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days ago"
