"""The runs of a proof on the connected Ray cluster, as `mirage run` would launch them.

Where the next workers are as many, Ray itself starts them in place of those that died; another number of workers takes
over as a job that is submitted again. SIGKILL comes from within, at the very step
(`orchestrator.training.fault_injection`)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from orchestrator.config.identity import run_id
from orchestrator.config.schema import Job
from orchestrator.console import Echo, text_console
from orchestrator.errors import TrainingError
from orchestrator.events import Event, WorkerKilled
from orchestrator.resilience.resume_proof import Stretch, many
from orchestrator.signals import on_stop
from orchestrator.training.assignment import Assignment, assignment_of
from orchestrator.training.driver import ControlSignal
from orchestrator.training.fault_injection import KillSchedule
from orchestrator.training.ray_launcher import FailureLimitReachedError, launch
from orchestrator.training.run_location import Place
from shards.dataset import Dataset
from shards.store import Store


def on_ray(
    job: Job, dataset: Dataset, store: Store, stretches: Sequence[Stretch], stop: int, say: Echo
) -> None:
    """Run `job` in the folder `store` through all stretches until step `stop`.

    Raises PlanError when the cluster can never hold it, TrainingError when it ended in another way than was meant.
    """
    where = assignment_of(job, dataset, Place(run_id(job, dataset.digests), store.uri, Path()))
    for stretch in stretches:
        last = stretch is stretches[-1]
        deaths = ", ".join(f"worker {worker} after step {step}" for step, worker in stretch.deaths)
        say(f"{many(stretch.workers)}; to be killed: {deaths or 'none'}")
        _run(job, where, stretch, stop if last else None, say)


def _run(job: Job, where: Assignment, stretch: Stretch, stop: int | None, say: Echo) -> None:
    """Take one stretch; `stop` is None when it ends with its last death."""
    restarts = len(stretch.deaths) - (stop is None)
    crew = {"min": stretch.workers, "max": stretch.workers, "max_failures": restarts}
    job = job.model_copy(update={"workers": job.workers.model_copy(update=crew)})
    schedule = KillSchedule(stop or 10**9, stretch.deaths)
    assignment = replace(where, job=job.model_dump(mode="json"), kill_schedule=asdict(schedule))
    driver = _Witness(say)
    stop_requested = threading.Event()
    try:
        with on_stop(stop_requested.set):
            outcome = launch(job, assignment, driver, stop_requested, retry_on_progress=False)
    except FailureLimitReachedError:
        if stop is not None or driver.deaths < len(stretch.deaths):
            raise
        return
    if outcome.step != stop:
        raise TrainingError(f"the run was {outcome.status} at step {outcome.step}: nothing is proven.")
    if driver.deaths < len(stretch.deaths):
        raise TrainingError(f"{driver.deaths} of {len(stretch.deaths)} workers died: nothing is proven.")


class _Witness:
    """A driver that shows what happens and counts the deaths; nothing is tracked."""

    def __init__(self, say: Echo) -> None:
        self._print = text_console(say)
        self.deaths = 0

    def emit(self, event: Event) -> None:
        self.deaths += isinstance(event, WorkerKilled)
        self._print(event)

    def control_signal(self, step: int) -> ControlSignal:
        return ControlSignal.CONTINUE
