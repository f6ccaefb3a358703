"""The training of one trial, in a thread that reports validations to the trial's process.

A trial trains in its own process if one worker is enough, else with several workers as a Ray Train run. In its own
process it waits after each validation until the scheduler has decided, so that a paused or stopped trial has its
checkpoint at that very step.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.config.job_types import JobOutcome
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schedule import total_steps
from orchestrator.config.schema import METRIC, Job
from orchestrator.config.search_space import Values
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.data import datasets
from orchestrator.events import Event, Validation
from orchestrator.masking import masked
from orchestrator.paths import below, home
from orchestrator.sweeps.best_trial import trial_job
from orchestrator.training.assignment import worker_assignment
from orchestrator.training.checkpoint import Checkpoints, Retention, RunIdentity
from orchestrator.training.driver import ControlSignal
from orchestrator.training.job import train_in_process
from orchestrator.training.run_location import locate_run
from orchestrator.training.saving import open_checkpoints
from shards.dataset import Dataset
from shards.store import open_store

_logger = logging.getLogger(__name__)

STEP = "step"
_HEARTBEAT_SECONDS = 2.0
_POLL_SECONDS = 0.5


class TrialTraining(Protocol):
    """What the trials of a sweep share; Ray Tune sends it to each process once."""

    @property
    def waits(self) -> bool:
        """Whether training waits for the decision after each validation."""

    def train(self, identity: Mapping[str, Any], values: Values, session: TrialSession) -> JobOutcome:
        """Train the trial with this number, generation and values until its end, or until `session` says stop."""


@dataclass(frozen=True)
class SweepTraining:
    """Training of a sweep's trials on its packed data."""

    job: Mapping[str, Any]
    """The sweep's job, resolved, without passwords: Ray Tune writes it to files."""
    sweep: str
    manifests: tuple[str, ...]
    digests: tuple[str, ...]
    home: str
    waits: bool
    """Whether trials train in their own process: one worker, without DeepSpeed."""

    @classmethod
    def of(cls, job: SweepJob, sweep: str, dataset: Dataset) -> SweepTraining:
        """Return the training of the trials of `job`."""
        alone = job.workers.min == 1 and job.engine.name == "ddp"
        manifests = tuple(below(job.storage, name) for name in job.data.manifests)
        content = job.model_dump(mode="json")
        content["track"] = masked(content["track"])
        return cls(content, sweep, manifests, tuple(dataset.digests), str(home()), alone)

    def train(self, identity: Mapping[str, Any], values: Values, session: TrialSession) -> JobOutcome:
        """Train a trial from its newest checkpoint, or from the weights that it copies."""
        os.environ["MIRAGE_HOME"] = self.home
        sweep_job = job_from_mapping(self.job)
        assert isinstance(sweep_job, SweepJob), "only sweeps have trials"
        job = trial_job(sweep_job, self.sweep, identity["number"], identity["generation"], values)
        dataset = datasets.open_dataset_at(self.manifests, self.digests, job.data)
        location = locate_run(job, dataset)
        checkpoints = open_checkpoints(job, dataset, location.store, "")
        if "copy" in identity and not checkpoints.names():
            _copy_weights(checkpoints, f"{location.uri.rpartition('/')[0]}", identity["copy"], self.digests)
        _report_stored(job, dataset, checkpoints, session)
        if self.waits:
            return train_in_process(job, dataset, location, session)
        from orchestrator.training.ray_launcher import launch

        outcome = launch(job, worker_assignment(job, dataset, location), session, session.stop)
        _report_stored(job, dataset, checkpoints, session)
        return outcome


def _copy_weights(
    checkpoints: Checkpoints, runs: str, origin: Mapping[str, Any], digests: tuple[str, ...]
) -> None:
    """Write the checkpoint of another run as the first one of this run."""
    other = Checkpoints(
        open_store(f"{runs}/{origin['run']}"), RunIdentity(origin["run"], digests), keep=Retention()
    )
    name = next(name for name in other.names() if int(name.split("-")[0]) >= origin["step"])
    checkpoints.save(other.load(name))
    checkpoints.wait()


def _report_stored(job: Job, dataset: Dataset, checkpoints: Checkpoints, session: TrialSession) -> None:
    """Report validations that are in checkpoints: an interrupted driver may not have recorded them."""
    total = total_steps(job.train, datasets.train_stream(dataset, job).order.steps_per_epoch)
    every = job.validation.every_steps
    for step, metrics in sorted(checkpoints.metrics().items()):
        if METRIC in metrics:
            session.report(step if step == total else step // every * every, metrics)


class TrialSession:
    """The thread of a trial's training, and what it exchanges with the trial's process: a `Driver`."""

    def __init__(self, training: TrialTraining, identity: Mapping[str, Any], values: Values) -> None:
        self.stop = threading.Event()
        """Set: write a checkpoint and end."""
        self._training, self._identity, self._values = training, identity, values
        self._messages: queue.Queue[tuple[Any, threading.Event]] = queue.Queue()
        self._decided = threading.Event()
        self._validation: Validation | None = None
        self._events: list[Event] = []
        self._began = self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"trial-{identity['number']}", daemon=True)
        self._thread.start()

    # What the thread calls.

    def _run(self) -> None:
        try:
            self._put(self._training.train(self._identity, self._values, self))
        except Exception as error:
            _logger.exception("trial %d", self._identity["number"])
            self._put(error)

    def emit(self, event: Event) -> None:
        """Pass an event on; a validation also becomes a result of the trial."""
        self._heard = time.monotonic()
        self._events.append(event)
        if isinstance(event, Validation):
            self._validation = event
            if not self._training.waits:
                self._report_validation()

    def control_signal(self, step: int) -> ControlSignal:
        """Hand over a new validation, wait for the decision, and return whether to stop."""
        decided = self._report_validation()
        while decided and not self.stop.is_set() and not decided.wait(_POLL_SECONDS):
            pass
        return ControlSignal.STOP if self.stop.is_set() else ControlSignal.CONTINUE

    def _report_validation(self) -> threading.Event | None:
        event, self._validation = self._validation, None
        return self.report(event.step, event.metrics) if event else None

    def report(
        self, step: int, metrics: Mapping[str, float], seconds: float | None = None
    ) -> threading.Event:
        """Report a validation and return what is set once it is decided what the trial does next.

        `seconds` replaces the time since the session began.
        """
        result = {STEP: step, "training_iteration": step, **metrics}
        return self._put({**result, "seconds": self.seconds if seconds is None else seconds})

    def _put(self, message: dict[str, Any] | JobOutcome | Exception) -> threading.Event:
        decided = threading.Event()
        self._messages.put((message, decided))
        return decided

    # What the process calls.

    @property
    def seconds(self) -> float:
        """Wall time since the session began."""
        return round(time.monotonic() - self._began, 3)

    @property
    def silent_seconds(self) -> float:
        """Time since the newest event."""
        return time.monotonic() - self._heard

    def next(self) -> dict[str, Any] | JobOutcome | Exception | None:
        """Return the next validation or the end of training, None if neither comes within some seconds."""
        self._decided.set()  # the one before is, or this would not be called
        try:
            message, self._decided = self._messages.get(timeout=_HEARTBEAT_SECONDS)
        except queue.Empty:
            return None
        found: dict[str, Any] | JobOutcome | Exception = message
        return found

    def take_events(self) -> list[Event]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def end(self) -> None:
        """Let training write a checkpoint and end, and wait for it."""
        self.stop.set()
        self._decided.set()
        self._thread.join()
