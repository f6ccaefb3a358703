"""Run the segments of a resume proof on the connected Ray cluster, as `mirage run` does.

Within a segment, Ray restarts killed workers. A segment with another number of workers is launched like a resubmitted
job. Workers send SIGKILL to themselves at the scheduled step (`orchestrator.training.fault_injection`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from orchestrator.config.identity import run_id
from orchestrator.config.schema import Job
from orchestrator.console import Echo, count, text_console
from orchestrator.errors import TrainingError
from orchestrator.events import Event, WorkerKilled
from orchestrator.resilience.resume_proof import RunSegment
from orchestrator.signals import on_stop
from orchestrator.training.assignment import WorkerAssignment, worker_assignment
from orchestrator.training.driver import ControlSignal
from orchestrator.training.fault_injection import KillSchedule
from orchestrator.training.ray_launcher import FailureLimitReachedError, launch
from orchestrator.training.run_location import RunLocation
from shards.dataset import Dataset
from shards.store import Store


def run_on_ray(
    job: Job, dataset: Dataset, store: Store, segments: Sequence[RunSegment], stop: int, echo: Echo
) -> None:
    """Run all segments of `job` in the folder `store` until step `stop`.

    Raises PlanError if the cluster can never fit the job, TrainingError if the run does not end as specified.
    """
    where = worker_assignment(job, dataset, RunLocation(run_id(job, dataset.digests), store.uri, Path()))
    for segment in segments:
        last = segment is segments[-1]
        kills = ", ".join(f"worker {worker} after step {step}" for step, worker in segment.kills)
        echo(f"{count(segment.workers, 'worker')}; scheduled kills: {kills or 'none'}")
        _run(job, where, segment, stop if last else None, echo)


def _run(job: Job, where: WorkerAssignment, segment: RunSegment, stop: int | None, echo: Echo) -> None:
    """Run one segment; `stop` is None if it ends with its last kill."""
    restarts = len(segment.kills) - (stop is None)
    worker_settings = {"min": segment.workers, "max": segment.workers, "max_failures": restarts}
    job = job.model_copy(update={"workers": job.workers.model_copy(update=worker_settings)})
    schedule = KillSchedule(stop or 10**9, segment.kills)
    assignment = replace(where, job=job.model_dump(mode="json"), kill_schedule=asdict(schedule))
    driver = _KillCountingDriver(echo)
    stop_requested = threading.Event()
    try:
        with on_stop(stop_requested.set):
            outcome = launch(job, assignment, driver, stop_requested, retry_on_progress=False)
    except FailureLimitReachedError:
        if stop is not None or driver.kills < len(segment.kills):
            raise
        return
    if outcome.step != stop:
        raise TrainingError(f"the run was {outcome.status} at step {outcome.step}, not {stop}: inconclusive.")
    if driver.kills < len(segment.kills):
        raise TrainingError(f"{driver.kills} of {len(segment.kills)} workers were killed: inconclusive.")


class _KillCountingDriver:
    """Driver that prints events and counts kills, without tracking."""

    def __init__(self, echo: Echo) -> None:
        self._print = text_console(echo)
        self.kills = 0

    def emit(self, event: Event) -> None:
        self.kills += isinstance(event, WorkerKilled)
        self._print(event)

    def control_signal(self, step: int) -> ControlSignal:
        return ControlSignal.CONTINUE
