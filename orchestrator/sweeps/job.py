"""Run a sweep from its job to its end: pack, search, report, and finish the winner.

Every stage is idempotent, as those of a training job are: a sweep that is submitted again continues where its event log
ends, and one that has finished is reported again.
"""

from __future__ import annotations

import threading
from pathlib import Path

from orchestrator.config.identity import sweep_id
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.loader import dump_job
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.console import Echo, console, message_echo
from orchestrator.data import datasets
from orchestrator.data.job import pack_if_missing
from orchestrator.errors import PlanError, SweepError
from orchestrator.ownership import owned
from orchestrator.paths import below, home
from orchestrator.planning.plan import make_plan
from orchestrator.planning.sweep_plan import plan_sweep, training_job, with_network
from orchestrator.signals import Stopped, on_stop, raise_on_stop
from orchestrator.sweeps.best_trial import winning_job
from orchestrator.sweeps.event_log import EventLog
from orchestrator.sweeps.report import write_report
from orchestrator.sweeps.trial_table import TrialTable
from orchestrator.sweeps.trial_tracking import PARENT_TAG, SWEEP_ID_TAG, TrialTracking
from orchestrator.sweeps.trial_training import SweepTraining
from orchestrator.tracking import runs
from orchestrator.tracking.background import Tracker
from orchestrator.tracking.mirrors import check_installed
from orchestrator.tracking.uri import page_command, resolve_tracking_uri
from orchestrator.training.job import run_job
from orchestrator.version import code_version
from shards.store import Store, open_store


def run_sweep(job: SweepJob, echo: Echo, *, in_process: bool = False, wait: bool = False) -> JobOutcome:
    """Run `job` to its end and print what happens; `wait` waits while another process owns the sweep.

    Raises an error of `orchestrator.errors` or `shards.errors`.
    """
    if in_process:
        raise PlanError(
            "a sweep runs on Ray, so leave out --in-process. Without a cluster, Ray starts on this machine for the "
            "time of the sweep."
        )
    from orchestrator.sweeps.ray_search import searcher_of

    searcher_of(job.sweep)  # raises if a package is missing, before anything is packed
    check_installed(job.track.also)
    print_events = message_echo(console(echo, job.track.log, job.name))
    try:
        with raise_on_stop():
            return _run(job, print_events, echo, wait)
    except Stopped:
        print_events("stopped. Run the sweep again to continue.")
        return JobOutcome("stopped", 0, job.sweep.trials)


def _run(job: SweepJob, print_events: Echo, echo: Echo, wait: bool) -> JobOutcome:
    """Do `run_sweep`. Raises Stopped when the process is asked to stop while no trial runs."""
    base = training_job(job)
    pack_if_missing(base, print_events)
    print_events(plan_sweep(job) + "\n")
    dataset = datasets.open_dataset(base)
    name = sweep_id(job, dataset)
    store = sweep_store(job, name)
    store.ensure_bucket()
    stop = threading.Event()
    with owned(store, f"sweep {name}", print_events, wait=wait, on_lost=stop.set) as lease:
        log = EventLog(store, print_events, lease.check)
        log.echo(f"sweep {name}" + (f" continues after {len(log.events)} events" if log.events else ""))
        uri = resolve_tracking_uri(job.track.uri)
        tracking = TrialTracking(job, name, _open_run(job, name, uri), uri, dataset, log.echo)
        log.submit(dump_job(job).encode(), code=code_version(), data=list(dataset.digests))
        report_folder(name).mkdir(parents=True, exist_ok=True)  # by which `find_sweep` knows it while it runs
        complete = _search(tracking, log, stop)
        lease.check()
        done = sum(row.ended for row in log.table.trials)
        if not complete:
            log.echo("the sweep is stopped; its trials have checkpoints. Run it again to continue.")
            return JobOutcome("stopped", done, job.sweep.trials)
        return JobOutcome(_finish_winner(tracking, log.table, echo), done, done)


def sweep_store(job: SweepJob, name: str) -> Store:
    """Return the sweep's folder in the store."""
    return open_store(f"{below(job.storage, 'sweeps')}/{name}")


def report_folder(name: str) -> Path:
    """Return the folder of the sweep's report on this machine."""
    return home() / "sweeps" / name


def _search(tracking: TrialTracking, log: EventLog, stop: threading.Event) -> bool:
    """Run the trials and report the sweep; return whether it reached its end."""
    from orchestrator.cluster.connection import connected
    from orchestrator.sweeps.ray_tuner import prepare_environment

    prepare_environment()
    status = "FAILED"
    with connected():
        try:
            complete = _run_trials(tracking, log, stop)
            status = "FINISHED" if complete else "KILLED"
        except Stopped:
            status = "KILLED"
            raise
        finally:
            _end_run(tracking, log, status)
    return complete


def _run_trials(tracking: TrialTracking, log: EventLog, stop: threading.Event) -> bool:
    """Run the trials on the connected cluster; return whether the sweep reached its end."""
    from orchestrator.cluster.concurrency import concurrent_groups
    from orchestrator.sweeps.ray_tuner import run_trials

    job = tracking.job
    total = make_plan(with_network(job, training_job(job)), strict=True, dataset=tracking.dataset).total_steps
    with on_stop(stop.set):
        complete, _ = run_trials(
            job,
            tracking.sweep,
            log,
            SweepTraining.of(job, tracking.sweep, tracking.dataset),
            tracking,
            concurrent=concurrent_groups(job.workers, job.sweep.max_concurrent),
            length=min(total, job.sweep.steps or total),
            stop=stop,
        )
    return complete


# --- the sweep's own run in MLflow -----------------------------------------------------------------------------


def _open_run(job: SweepJob, name: str, uri: str) -> str:
    known = runs.find_run(uri, SWEEP_ID_TAG, name, job.track.experiment)
    tags = {SWEEP_ID_TAG: name, "mirage.setting": job.setting, "mirage.recipe": job.recipe}
    tags["mirage.code_version"] = code_version()
    params = {
        "storage": job.storage,
        "search": job.sweep.search.method,
        "scheduler": job.sweep.scheduler.name,
        "seed": job.sweep.search.seed,
        **{f"space.{parameter}": str(domain)[:500] for parameter, domain in job.sweep.space.items()},
    }
    resumed = known.id if known else None
    return runs.start_run(uri, job.track.experiment, name, tags, params, resume_id=resumed)


def _end_run(tracking: TrialTracking, log: EventLog, status: str) -> None:
    """Report the sweep, here and in MLflow, and end its run there."""
    folder = report_folder(tracking.sweep)
    files = write_report(tracking.job, tracking.sweep, log.events, folder)
    log.echo((folder / "leaderboard.txt").read_text())
    log.echo(f"report     {folder / 'report.html'}, report.md")
    log.echo(f"MLflow     {page_command(tracking.uri)}")
    tracker = Tracker(tracking.uri, tracking.parent, home() / "spool", name=tracking.sweep)
    for path in files:
        tracker.artifact(path.name, path.read_bytes())
    tracker.artifact("job.yaml", dump_job(tracking.job).encode())
    tracker.end(status)
    tracker.close()


# --- the winner ----------------------------------------------------------------------------------------------


def _finish_winner(tracking: TrialTracking, table: TrialTable, echo: Echo) -> str:
    """Do with the best trial what the job says; return the status of that. Its model names the sweep in its tags."""
    job, best = tracking.job, table.best()
    if best is None:
        raise SweepError(
            f"sweep {tracking.sweep}: no trial reached its end, so there is no winner. The report says why: "
            f"{report_folder(tracking.sweep) / 'report.md'}"
        )
    tracking.echo(f"winner     trial {best.number}: {best.ending}")
    if job.sweep.winner.then == "none":
        return "finished"
    if job.sweep.winner.then == "continue" and best.tracked:
        runs.start_run(tracking.uri, job.track.experiment, "", {}, {}, resume_id=best.tracked)
    lineage = {**tracking.lineage(best.number), PARENT_TAG: tracking.parent}
    return run_job(winning_job(job, tracking.sweep, best), echo, lineage=lineage).status
