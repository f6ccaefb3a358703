"""A job of kind `restore`: the work of `mirage restore`, shared among the workers of a cluster.

The driver plans the tasks. Workers take a chunk of tasks at a time, read the photographs and write the results
themselves. Only names travel between them, so memory does not grow with the number of photographs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event

from orchestrator.config.job_schemas import RestoreJob
from orchestrator.config.job_types import JobOutcome
from orchestrator.console import Echo
from orchestrator.errors import PhotoError
from orchestrator.imaging.photos import LIMITS, Limits
from orchestrator.paths import absolute_uri
from orchestrator.progress import progress
from orchestrator.registry.resolve import ModelFile, find_model
from orchestrator.restoration.restorer import RestoreSettings, checked_threads
from orchestrator.restoration.tasks import (
    RestoreOutcome,
    RestorePlan,
    RestoreTask,
    Status,
    merge_indexes,
    plan,
    summary,
)
from orchestrator.restoration.worker_spec import CHUNK_SIZE, Outcomes, WorkerSpec
from orchestrator.signals import on_stop


def run_restore(job: RestoreJob, echo: Echo, *, in_process: bool = False) -> JobOutcome:
    """Restore the photographs of a job and print the progress.

    Raises PhotoError at the end if some photographs could not be restored; all others are.
    """
    model = find_model(_model(job.restore.model), trust_code=job.restore.trust)
    work = _plan(job, dry_run=False)
    tasks, problems = work.tasks, work.problems
    for line in problems:
        echo(line)
    if not tasks:
        raise PhotoError("there is no photograph to restore.")
    echo(f"{len(tasks):,} photographs, model {job.restore.model}, into {tasks[0].target.folder}")
    stop = Event()
    report = _Report(len(problems))
    with on_stop(stop.set), progress(echo, "restoring") as (advance,):
        outcomes = _outcomes(job, _worker_spec(job, model), tasks, echo, stop.is_set, in_process=in_process)
        deadline = 3600 * job.workers.max_runtime_hours if job.workers.max_runtime_hours else None
        with closing(outcomes):
            for outcome in outcomes:
                report.add(outcome, echo)
                advance(report.ended, len(tasks), str(outcome.task.source))
                if deadline and report.seconds > deadline:
                    echo(f"workers.max_runtime_hours ({job.workers.max_runtime_hours:g}) is over")
                    stop.set()
                if stop.is_set():
                    break
    if report.ended < len(tasks):
        left = len(tasks) - report.ended
        echo(f"stopped: {report.summary()}, {left:,} left. Run the job again to continue.")
        return JobOutcome("stopped", report.ended, len(tasks))
    merge_indexes(tasks)
    if work.others:
        echo(work.named_others())
    echo(report.summary())
    if failed := report.counts["failed"]:
        raise PhotoError(f"{failed:,} of {len(tasks):,} could not be restored; they are named above.")
    return JobOutcome("finished", len(tasks), len(tasks))


def plan_restore(job: RestoreJob) -> str:
    """Return what the job will do and how many results exist. Writes nothing."""
    work = _plan(job, dry_run=True)
    tasks = work.tasks
    existing = sum(task.exists for task in tasks)
    how = job.restore
    workers = job.workers
    resources = f"{workers.cpus:g} CPU" + (f" and {workers.gpus:g} GPU" if workers.gpus else "")
    lines = [
        f"job {job.name}   kind restore",
        "",
        f"photographs  {len(tasks):,} in {', '.join(how.inputs)}",
        f"model        {how.model}, {how.precision}, mode {how.mode}, batches of {how.batch_size}",
        f"into         {absolute_uri(how.out)}, where {existing:,} of these names exist",
        f"workers      {workers.min} to {workers.max}, each {resources}",
    ]
    return "\n".join([*lines, *work.problems, *filter(None, [work.named_others()])])


def _plan(job: RestoreJob, *, dry_run: bool) -> RestorePlan:
    out = absolute_uri(job.restore.out)
    # The slash: OUT of a job is a folder, also if its name ends like that of an image.
    return plan([absolute_uri(given) for given in job.restore.inputs], f"{out}/", dry_run=dry_run)


def _model(name: str) -> str:
    """Return the model's name; the absolute path if it is a file or folder of the project."""
    if "://" in name or name.startswith(("models:/", "runs:/")):
        return name
    path = absolute_uri(name)
    return path if Path(path).exists() else name


def _worker_spec(job: RestoreJob, model: ModelFile) -> WorkerSpec:
    how = job.restore
    settings = RestoreSettings(how.precision, how.mode, how.tile, how.overlap)
    return WorkerSpec(
        weights=model.weights(),
        settings=settings,
        digest=settings.digest(model.digest),
        gpu=job.workers.gpus > 0,
        # The number of threads changes the order of sums, so the job sets it, not the machine.
        threads=checked_threads(max(1, int(job.workers.cpus)), "workers.cpus"),
        overwrite=how.overwrite,
        batch_size=how.batch_size,
        limits=Limits(LIMITS.bytes, int(how.max_megapixels * 1e6)),
    )


def _outcomes(
    job: RestoreJob,
    spec: WorkerSpec,
    tasks: Sequence[RestoreTask],
    echo: Echo,
    stopping: Callable[[], bool],
    *,
    in_process: bool,
) -> Outcomes:
    chunks = [tasks[start : start + CHUNK_SIZE] for start in range(0, len(tasks), CHUNK_SIZE)]
    if in_process:
        return _restore_here(spec, chunks)
    from orchestrator.restoration.ray_pool import restore_on_cluster

    return restore_on_cluster(spec, job.workers, chunks, echo, stopping)


def _restore_here(spec: WorkerSpec, chunks: Iterable[Sequence[RestoreTask]]) -> Outcomes:
    worker = spec.make_worker()
    left: list[RestoreOutcome] = []
    try:
        for chunk in chunks:
            yield from worker.run(chunk)
    finally:  # also when the job is stopped
        left = worker.finish()
    yield from left


class _Report:
    """Counter of outcomes."""

    def __init__(self, failed: int) -> None:
        self.counts: Counter[Status] = Counter({"failed": failed})
        self.ended = 0
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return time.monotonic() - self._began

    def add(self, outcome: RestoreOutcome, echo: Echo) -> None:
        """Count one outcome; print why it failed, or what its result does not keep."""
        self.ended += 1
        self.counts[outcome.status] += 1
        if line := outcome.reason or outcome.note:
            echo(line)

    def summary(self) -> str:
        """Return the counts and the time in words."""
        return f"{summary(self.counts)} in {self.seconds:.1f} s"
