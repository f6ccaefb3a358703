"""One trial: a run of its own, with its checkpoints, its folder in the store and its run in MLflow below the sweep's.

What a validation found is in the checkpoint after it. So a trial whose driver died between the two tells it again from
there, and the book misses nothing that the run knows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

from orchestrator.config.schema import Job
from orchestrator.config.sweep_schema import shown
from orchestrator.console import Echo, text
from orchestrator.errors import TrackingError
from orchestrator.events import Event, Progress, Validation
from orchestrator.paths import home
from orchestrator.planning.plan import make_plan
from orchestrator.run_files import RESULT, RUN_TAG
from orchestrator.sweeps.controller import Watch
from orchestrator.sweeps.trial_table import Trial
from orchestrator.tracking import background, runs
from orchestrator.training import initial_weights
from orchestrator.training.checkpoint import METRIC, Checkpoints, Retention
from orchestrator.training.checkpoint import RunIdentity as Identity
from orchestrator.training.driver import ControlSignal, Driver, JobOutcome
from orchestrator.training.job import end_run, open_run, track
from orchestrator.training.run_location import RunLocation as Place
from orchestrator.training.run_location import locate_run as place_of
from shards.dataset import Dataset

log = logging.getLogger(__name__)

SWEEP_TAG = "mirage.sweep"
"""Of a trial, and of a model that came of one: the id of its sweep."""
SWEEP_ID_TAG = "mirage.sweep_id"
"""Of the sweep's own run."""
TRIAL_TAG = "mirage.sweep_trial"
PARENT_TAG = "mlflow.parentRunId"

Train = Callable[[Job, Dataset, Place, Driver, threading.Event], JobOutcome]
"""Trains a job until its end, or until the event is set."""


@dataclass(frozen=True)
class Trials:
    """What the trials of a sweep have in common; calling it runs one."""

    sweep: str
    parent: str
    """The sweep's run in MLflow."""
    uri: str
    """MLflow."""
    dataset: Dataset
    train: Train
    say: Echo

    def __call__(self, trial: Trial, job: Job, watch: Watch) -> bool:
        """Run `trial` in this thread; return whether its job came to its end."""
        plan = make_plan(job, strict=True)
        place = place_of(job, self.dataset)
        found = (
            None if trial.tracked else runs.find_run(self.uri, RUN_TAG, place.run_id, job.track.experiment)
        )
        known = found.id if found else trial.tracked
        lineage = {**self.lineage(trial.number), PARENT_TAG: self.parent}
        chosen = {f"sweep.{knob}": shown(value) for knob, value in trial.values.items()}
        tracked = open_run(job, self.dataset, plan, place, self.uri, known or None, lineage, chosen)
        if job.init_from is not None and not place.store.exists(RESULT):
            initial_weights.keep(job, place.store, self.uri)
        watch.started(place.run_id, tracked, _devices(job), plan.total_steps)
        tracker = background.Tracker(self.uri, tracked, home() / "spool")
        driver = _Driver(trial.number, watch, tracker, self.say)
        status = "FAILED"
        try:
            complete = self._train(job, place, watch, driver, plan.total_steps)
            if not watch.unfit:
                status = "FINISHED" if complete or trial.cut else "KILLED"
        finally:
            tracker.close()
            if status != "KILLED" or trial.stopping_rung is not None:
                self._track_costs(trial, watch, tracked)
            end_run(self.uri, tracked, status)
        return complete

    def lineage(self, number: int) -> dict[str, str]:
        """Return the tags that say of which sweep and trial something is."""
        return {SWEEP_TAG: self.sweep, TRIAL_TAG: str(number)}

    def _train(self, job: Job, place: Place, watch: Watch, driver: _Driver, total_steps: int) -> bool:
        def tell_what_checkpoints_hold() -> None:
            identity = Identity(place.run_id, tuple(self.dataset.digests))
            for step, metrics in Checkpoints(place.store, identity, keep=Retention(1)).metrics().items():
                if METRIC in metrics:
                    every = job.validation.every_steps
                    watch.observed(step if step == total_steps else step // every * every, metrics)

        tell_what_checkpoints_hold()
        if place.store.exists(RESULT):
            return True
        if watch.asked.is_set():
            return False
        outcome = self.train(job, self.dataset, place, driver, watch.asked)
        tell_what_checkpoints_hold()
        return outcome.status == "finished"

    def _track_costs(self, trial: Trial, watch: Watch, tracked: str) -> None:
        before = sum(seconds for attempt, seconds in trial.seconds.items() if attempt != watch.attempt)
        values = {f"sweep/{name}": float(value) for name, value in asdict(trial.costs).items()}
        values["sweep/wall_seconds"] = before + watch.seconds
        values["sweep/device_seconds"] = (before + watch.seconds) * trial.devices
        if trial.psnr is not None:
            values["sweep/psnr"] = trial.psnr
        try:
            background.log_metrics(self.uri, tracked, trial.step, values)
        except TrackingError as error:
            log.warning("what trial %d came to is not in MLflow: %s", trial.number, error)


class _Driver:
    """A trial's side of `orchestrator.training.driver.Driver`: its lines with its number before them, and its
    validations.
    """

    def __init__(self, number: int, watch: Watch, tracker: background.Tracker, say: Echo) -> None:
        self._number, self._watch, self._tracker, self._say = number, watch, tracker, say

    def emit(self, event: Event) -> None:
        self._watch.heard()
        track(event, self._tracker)
        if isinstance(event, Validation):
            self._watch.observed(event.step, event.metrics)
        # A sweep prints no progress of single steps.
        if (line := text(event)) and not isinstance(event, Progress):
            self._say(f"trial {self._number}  {line}")

    def control_signal(self, step: int) -> ControlSignal:
        return ControlSignal.STOP if self._watch.asked.is_set() else ControlSignal.CONTINUE


def _devices(job: Job) -> float:
    """Return the devices that a trial holds: GPUs, or CPUs where it asks for none."""
    return job.workers.min * (job.workers.gpus or job.workers.cpus)
