"""A sweep from its job to its end: pack, search, decide, report, and what the job wants of the winner.

Every stage is idempotent, as those of a run are: a sweep that is submitted again goes on where its book ends, and one
that is finished is reported again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.identity import sweep_id
from orchestrator.config.loader import dump_job
from orchestrator.config.schema import Job
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.console import Echo
from orchestrator.data import datasets
from orchestrator.data.job import pack_if_missing
from orchestrator.errors import SweepError, TrackingError
from orchestrator.paths import below, home
from orchestrator.signals import on_stop
from orchestrator.sweeps.best_trial import winning_job
from orchestrator.sweeps.controller import Controller
from orchestrator.sweeps.event_log import Book
from orchestrator.sweeps.plan import plan_sweep
from orchestrator.sweeps.report import write_report
from orchestrator.sweeps.trial_runner import PARENT_TAG, SWEEP_ID_TAG, Train, Trials
from orchestrator.sweeps.trial_table import Table
from orchestrator.tracking import runs
from orchestrator.tracking.uri import page_command, resolve_tracking_uri
from orchestrator.training.driver import Driver, JobOutcome
from orchestrator.training.job import end_run, run_job, train_in_process
from orchestrator.training.run_location import RunLocation as Place
from orchestrator.version import code_version
from shards.dataset import Dataset
from shards.store import Store, open_store


@dataclass(frozen=True)
class Crew:
    """Who trains, and how many trials there is room for at a time."""

    train: Train
    room: int
    explain: Callable[[], str]
    """What the cluster holds and what a trial needs, in words."""


def run_sweep(job: SweepJob, say: Echo, *, in_process: bool = False) -> JobOutcome:
    """Run `job` to its end and say what a user wants to know on the way.

    `in_process` trains one trial at a time in this process, without Ray. Raises an error of `orchestrator.errors` or
    `shards.errors`.
    """
    uri = resolve_tracking_uri(job.track.uri)
    base = plain(job)
    pack_if_missing(base, say)
    say(plan_sweep(job) + "\n")
    dataset = datasets.open_dataset(base)
    name = sweep_id(job, dataset)
    store = sweep_store(job, name)
    store.ensure_bucket()
    book = Book(store)
    say(f"sweep {name}" + (f" goes on, {len(book.events)} events in its book" if book.events else ""))
    parent = _open_parent(job, name, uri)
    _submit(book, job, dataset)

    asked = threading.Event()
    with _crew(job, say, in_process) as crew:
        trials = Trials(name, parent, uri, dataset, crew.train, say)
        controller = Controller(job, name, book, trials, crew.room, say)
        try:
            with on_stop(asked.set):
                over = controller.run(asked.is_set, crew.explain)
        except BaseException:
            _end_parent(job, name, book, uri, parent, "FAILED", say)
            raise
    if not over:
        _end_parent(job, name, book, uri, parent, "KILLED", say)
        say("the sweep is stopped; its trials have checkpoints. Submit it again to go on.")
        return JobOutcome("stopped", _done(controller.table), job.sweep.trials)
    _end_parent(job, name, book, uri, parent, "FINISHED", say)
    return _winner(job, name, controller.table, trials, say, in_process=in_process)


def sweep_store(job: SweepJob, name: str) -> Store:
    """Return the sweep's folder in the store."""
    return open_store(f"{below(job.storage, 'sweeps')}/{name}")


def plain(job: SweepJob) -> Job:
    """Return the training job that the sweep changes: no knob is set."""
    found = Job.model_validate(job.model_dump(mode="json", exclude={"sweep", "kind"}))
    return found.model_copy(update={"name": job.name})


def folder_of(name: str) -> Path:
    """Return where the sweep's report lies on this machine."""
    return home() / "sweeps" / name


# --- who trains ----------------------------------------------------------------------------------------------


@contextmanager
def _crew(job: SweepJob, say: Echo, in_process: bool) -> Iterator[Crew]:
    if in_process:
        yield Crew(_train_here, 1, lambda: "It is in this process.")
        return
    from orchestrator.cluster.connection import connected
    from orchestrator.sweeps.ray_trials import explain, room, train_on_cluster

    with connected():
        at_a_time = room(job.workers, job.sweep.max_concurrent, say)
        yield Crew(train_on_cluster, at_a_time, lambda: explain(job.workers))


def _train_here(
    job: Job, dataset: Dataset, place: Place, driver: Driver, asked: threading.Event
) -> JobOutcome:
    return train_in_process(job, dataset, place, driver)


# --- the sweep's own run in MLflow -----------------------------------------------------------------------------


def _open_parent(job: SweepJob, name: str, uri: str) -> str:
    known = runs.find_run(uri, SWEEP_ID_TAG, name, job.track.experiment)
    tags = {SWEEP_ID_TAG: name, "mirage.setting": job.setting, "mirage.recipe": job.recipe}
    tags["mirage.code_version"] = code_version()
    params = {
        "storage": job.storage,
        "search": job.sweep.search.method,
        "scheduler": job.sweep.scheduler.name,
        "seed": job.sweep.search.seed,
        **{f"space.{knob}": str(domain)[:500] for knob, domain in job.sweep.space.items()},
    }
    return runs.start_run(
        uri, job.track.experiment, name, tags, params, resume_id=known.id if known else None
    )


def _submit(book: Book, job: SweepJob, dataset: Dataset) -> None:
    content = dump_job(job).encode()
    key = f"jobs/{hashlib.sha256(content).hexdigest()}.yaml"
    book.keep(key, content)
    book.add("submitted", job=key, code=code_version(), data=list(dataset.digests))


def _end_parent(job: SweepJob, name: str, book: Book, uri: str, parent: str, status: str, say: Echo) -> None:
    """Report what there is, here and in MLflow, and end the sweep's run there."""
    files = write_report(job, name, book.events, folder_of(name))
    shown: dict[str, bytes | Path] = {path.name: path for path in files}
    try:
        runs.log_artifacts(uri, parent, {**shown, "job.yaml": dump_job(job).encode()})
    except TrackingError as error:
        say(f"warning: the report is not in MLflow: {error}")
    end_run(uri, parent, status)
    say((folder_of(name) / "leaderboard.txt").read_text())
    say(f"report     {folder_of(name) / 'report.html'}, report.md")
    say(f"MLflow     {page_command(uri)}")


def _done(table: Table) -> int:
    return sum(trial.ended for trial in table.trials)


# --- the winner ----------------------------------------------------------------------------------------------


def _winner(
    job: SweepJob, name: str, table: Table, trials: Trials, say: Echo, *, in_process: bool
) -> JobOutcome:
    """Do with the best trial what the job says; the model that comes of it has the sweep as its lineage."""
    best = table.best()
    done = _done(table)
    if best is None:
        raise SweepError(
            f"sweep {name}: no trial came to its end, so there is no winner. The report says why: "
            f"{folder_of(name) / 'report.md'}"
        )
    say(f"winner     trial {best.number}: {best.ending}")
    if job.sweep.winner.then == "none":
        return JobOutcome("finished", done, done)
    final = winning_job(job, name, best)
    lineage = {**trials.lineage(best.number), PARENT_TAG: trials.parent}
    if job.sweep.winner.then == "continue" and best.tracked:
        runs.start_run(trials.uri, job.track.experiment, name, {}, {}, resume_id=best.tracked)
    outcome = run_job(final, say, in_process=in_process, lineage=lineage)
    return JobOutcome(outcome.status, done, done)
