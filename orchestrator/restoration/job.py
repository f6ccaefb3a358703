"""A job of kind `restore`: the command's work, shared among the workers of a cluster.

The driver makes the plan; workers (`cluster.batch`, on Ray Data) take a few tasks at a time, read the photographs
themselves and write the results themselves. Only names travel between them, so memory is bounded by what a worker
has in hand, however many photographs there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event

import torch

from mirage.weights import dumps
from orchestrator.config.job_schemas import Restoration, RestoreJob
from orchestrator.errors import PhotoError
from orchestrator.imaging.photos import LIMITS, Limits
from orchestrator.paths import absolute_uri
from orchestrator.registry.resolve import ModelFile, find_model
from orchestrator.restoration.restorer import Settings
from orchestrator.restoration.tasks import Outcome, Task, finish, plan
from orchestrator.restoration.worker_spec import LOT, Order, Outcomes
from orchestrator.signals import on_stop

Say = Callable[[str], None]


_TELL_SECONDS = 5.0


def run_restore(job: RestoreJob, say: Say, *, in_process: bool = False) -> bool:
    """Restore what the job asks for and say how it goes; return whether it was stopped half-way.

    Raises PhotoError at the end when some photographs could not be restored; all others are.
    """
    named = find_model(_model(job.restore.model))
    tasks, complaints = _plan(job, look=False)
    for line in complaints:
        say(line)
    if not tasks:
        raise PhotoError("there is no photograph to restore.")
    say(f"{len(tasks):,} photographs, model {job.restore.model}, into {tasks[0].target.folder}")
    asked = Event()
    tally = _Tally(len(tasks), say, failed=len(complaints))
    with on_stop(asked.set):
        outcomes = _outcomes(job, _order(job, named), tasks, say, asked.is_set, in_process=in_process)
        deadline = 3600 * job.workers.max_runtime_hours if job.workers.max_runtime_hours else None
        with closing(outcomes):
            for outcome in outcomes:
                tally.count(outcome)
                if deadline and tally.seconds > deadline:
                    say(f"workers.max_runtime_hours ({job.workers.max_runtime_hours:g}) is over")
                    asked.set()
                if asked.is_set():
                    break
    if tally.over < len(tasks):
        say(f"stopped: {tally.summary()}, {len(tasks) - tally.over:,} left. Submit the job again to go on.")
        return True
    finish(tasks)
    say(tally.summary())
    if tally.failed:
        raise PhotoError(f"{tally.failed:,} of {len(tasks):,} could not be restored; they are named above.")
    return False


def plan_restore(job: RestoreJob) -> str:
    """Return what the job will do and what is there already. Writes nothing."""
    tasks, complaints = _plan(job, look=True)
    known = sum(task.exists for task in tasks)
    how = job.restore
    crew = job.workers
    holds = f"{crew.cpus:g} CPU" + (f" and {crew.gpus:g} GPU" if crew.gpus else "")
    lines = [
        f"job {job.name}   kind restore",
        "",
        f"photographs  {len(tasks):,} in {', '.join(how.inputs)}",
        f"model        {how.model}, {how.precision}, mode {how.mode}, batches of {how.batch_size}",
        f"into         {absolute_uri(how.out)}, where {known:,} of these names stand already",
        f"workers      {crew.min} to {crew.max}, each {holds}",
    ]
    return "\n".join([*lines, *complaints])


def _plan(job: RestoreJob, *, look: bool) -> tuple[list[Task], list[str]]:
    out = absolute_uri(job.restore.out)
    # A job's OUT is a folder, whatever it is called.
    return plan([absolute_uri(given) for given in job.restore.inputs], f"{out}/", look=look)


def _model(name: str) -> str:
    """Return the model's name, with a file or folder of the project by its absolute path."""
    if "://" in name or name.startswith(("models:/", "runs:/")):
        return name
    path = absolute_uri(name)
    return path if Path(path).exists() else name


def _order(job: RestoreJob, named: ModelFile) -> Order:
    how = job.restore
    settings = _settings(how)
    return Order(
        weights=dumps(named.load(torch.device("cpu"))),
        settings=settings,
        digest=settings.digest(named.digest),
        gpu=job.workers.gpus > 0,
        # The number of threads changes the order of sums, so it is the job's, not the machine's.
        threads=max(1, int(job.workers.cpus)),
        overwrite=how.overwrite,
        batch_size=how.batch_size,
        limits=Limits(LIMITS.bytes, int(how.max_megapixels * 1e6)),
    )


def _settings(how: Restoration) -> Settings:
    return Settings(how.precision, how.mode, how.tile, how.overlap)


def _outcomes(
    job: RestoreJob,
    order: Order,
    tasks: Sequence[Task],
    say: Say,
    stopping: Callable[[], bool],
    *,
    in_process: bool,
) -> Outcomes:
    lots = [tasks[start : start + LOT] for start in range(0, len(tasks), LOT)]
    if in_process:
        return _here(order, lots)
    from orchestrator.restoration.ray_pool import restore_on_cluster

    return restore_on_cluster(order, job.workers, lots, say, stopping)


def _here(order: Order, lots: Iterable[Sequence[Task]]) -> Outcomes:
    workshop = order.workshop()
    for lot in lots:
        yield from workshop.work(lot)


class _Tally:
    """Counts outcomes and says now and then how far the work is."""

    def __init__(self, total: int, say: Say, failed: int) -> None:
        self._total, self._say = total, say
        self.restored = self.done = 0
        self.failed = failed
        self.over = 0
        self._began = self._told = self._first = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return time.monotonic() - self._began

    def count(self, outcome: Outcome) -> None:
        """Take note of what became of one photograph."""
        now = time.monotonic()
        if not self.over:  # until then workers started and loaded their model
            self._first = self._told = now
        self.over += 1
        self.restored += outcome.status == "restored"
        self.done += outcome.status == "done"
        if outcome.status == "failed":
            self.failed += 1
            self._say(outcome.reason)
        if now - self._told > _TELL_SECONDS:
            self._told = now
            rate = (self.over - 1) / (now - self._first)
            left = (self._total - self.over) / rate
            self._say(f"{self.over:,}/{self._total:,}  {rate:.3g} per second, {left / 60:.1f} min left")

    def summary(self) -> str:
        """Return the counts in words."""
        done = f", {self.done:,} done already" if self.done else ""
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.restored:,} restored{done}{failed} in {self.seconds:.1f} s"
