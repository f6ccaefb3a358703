"""Sweeps without Ray and without training: trials follow a formula, and a loop of a few lines stands for Ray Tune."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.config.schema import METRIC, Job
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.sweeps.best_trial import trial_job
from orchestrator.sweeps.event_log import EventLog
from orchestrator.sweeps.event_schema import Started
from orchestrator.sweeps.ray_replay import ReplayController, repeat_recorded
from orchestrator.sweeps.ray_scheduler import RecordedScheduler, scheduler_of
from orchestrator.sweeps.ray_search import RecordedSearch
from orchestrator.sweeps.ray_trial import FAILURE, TRIAL
from orchestrator.sweeps.trial_table import TrialTable
from orchestrator.sweeps.trial_training import STEP

NAME = "mine-0123456789"
EVERY = 10


def psnr(job: Job, step: int) -> float:
    """Better with width, best at an SPD weight of 0.01, and better with time."""
    width = math.log2(job.model.dim or 24)
    weight = abs(math.log10(job.loss.spd_weight or 1e-9) + 2)
    return round(20 + width - 0.3 * weight - 40 / (step + 10), 4)


class MemoryStore:
    """A store in memory, as far as an event log needs one: files of a disk are synchronised at every write."""

    uri = "memory"

    def __init__(self, content: Mapping[str, bytes] | None = None) -> None:
        self.content = dict(content or {})

    def exists(self, key: str) -> bool:
        return key in self.content

    def read(self, key: str) -> bytes:
        return self.content[key]

    def write(self, key: str, content: bytes) -> None:
        self.content.setdefault(key, content)

    def create(self, key: str, content: bytes) -> bool:
        return self.content.setdefault(key, content) is content

    def list(self, prefix: str) -> list[str]:
        return sorted(key for key in self.content if key.startswith(prefix))

    def before(self, events: int) -> MemoryStore:
        """Return what a driver left that was killed after so many events."""
        return MemoryStore({key: self.content[key] for key in self.list("events/")[:events]})


class KilledError(Exception):
    """The driver is killed."""


class MortalLog(EventLog):
    """An event log whose driver is killed instead of writing event `dies_at`."""

    dies_at: int | None = None

    def _write(self, event: Any) -> Any:
        if self.dies_at is not None and len(self.events) >= self.dies_at:
            raise KilledError
        return super()._write(event)


class SimulatedTune:
    """Runs a sweep as Ray Tune would, one validation at a time, `concurrent` trials in turns."""

    def __init__(
        self,
        job: SweepJob,
        store: Any,
        *,
        concurrent: int = 1,
        dies_at: int | None = None,
        curve: Callable[[Job, int], float] = psnr,
        fails: Mapping[int, int] | None = None,
        reason: str = "the run has diverged",
    ) -> None:
        self.job, self.curve, self.fails, self.reason = job, curve, fails or {}, reason
        self.said: list[str] = []
        self.log = MortalLog(store, self.said.append)
        self.log.submit(b"", code="", data=[])
        self.search = RecordedSearch(job, self.log, concurrent)
        self.search.make_trial = stub_trial  # type: ignore[method-assign]
        self.length = job.sweep.steps or job.train.steps or 0
        self.scheduler = RecordedScheduler(job, scheduler_of(job, self.length), self.search, self.log)
        self.controller = ReplayController(self.search, self.scheduler)
        self.concurrent = concurrent
        self.steps_run: list[tuple[int, int]] = []
        self._jobs: dict[tuple[int, int], Job] = {}
        self.log.dies_at = dies_at

    def run(self) -> TrialTable:
        """Run the sweep to its end. Raises KilledError."""
        repeat_recorded(self.search, self.scheduler, self.log)
        running: list[Trial] = []
        while True:
            while (trial := self.search.next_trial()) is not None:
                self.scheduler.on_trial_add(self.controller, trial)
            while len(running) < self.concurrent and (
                trial := self.scheduler.choose_trial_to_run(self.controller)
            ):
                self._start(trial)
                running.append(trial)
            if not running:
                assert self.search.is_finished(), "nothing runs and the search is not over"
                assert all(row.ended for row in self.log.table.trials), "all trials wait for each other"
                return self.log.table
            trial = running.pop(0)
            if self._validate(trial):
                running.append(trial)

    def _start(self, trial: Trial) -> None:
        trial.set_status(Trial.RUNNING)
        row = self.log.table.trials[int(trial.trial_id)]
        run, whole = f"run-{row.number}-{row.generation}", self.length == self.job.train.steps
        self.log.add(Started(row.number, row.attempts + 1, run, "", 1.0, self.length, whole))

    def _validate(self, trial: Trial) -> bool:
        """Let a trial run to its next validation; return whether it still runs."""
        row = self.log.table.trials[int(trial.trial_id)]
        identity = trial.config[TRIAL]
        assert identity["generation"] == row.generation
        if (job := self._jobs.get((row.number, row.generation))) is None:
            values = {name: value for name, value in trial.config.items() if name != TRIAL}
            job = trial_job(self.job, NAME, row.number, row.generation, values)
            self._jobs[row.number, row.generation] = job
        if row.step >= row.length:  # its driver died before it recorded the end
            return self._complete(trial)
        step = row.step + EVERY
        if self.fails.get(row.number, math.inf) <= step:
            self.scheduler.on_trial_result(self.controller, trial, {FAILURE: self.reason})
            self.scheduler.on_trial_error(self.controller, trial)
            trial.set_status(Trial.ERROR)
            self.search.on_trial_complete(trial.trial_id, error=True)
            return False
        self.steps_run.append((row.number, step))
        result = {STEP: step, METRIC: self.curve(job, step), "seconds": float(step)}
        decision = self.scheduler.on_trial_result(self.controller, trial, result)
        if decision == TrialScheduler.STOP or row.step >= row.length:
            return self._complete(trial)
        self.search.on_trial_result(trial.trial_id, result)
        if decision == TrialScheduler.PAUSE:
            self.controller._schedule_trial_save(trial, result)
            self.controller.pause_trial(trial)
        return trial.status == Trial.RUNNING

    def _complete(self, trial: Trial) -> bool:
        self.scheduler.on_trial_complete(self.controller, trial, {})
        trial.set_status(Trial.TERMINATED)
        self.search.on_trial_complete(trial.trial_id)
        return False


def stub_trial(**arguments: Any) -> Trial:
    """Return a trial that no process runs."""
    storage = SimpleNamespace(_update_checkpoint_index=lambda metrics: None)
    return Trial("stub", stub=True, storage=storage, **arguments)


def run(job: SweepJob, store: Any = None, **options: Any) -> TrialTable:
    """Run the sweep with its event log in `store`, or in memory."""
    return SimulatedTune(job, MemoryStore() if store is None else store, **options).run()


def rows(table: TrialTable) -> Sequence[tuple[object, ...]]:
    """Return all of the table but times."""
    return [
        (t.number, str(t.values), t.reason, t.status, t.ending, t.curve, t.generation) for t in table.trials
    ] + [(str(r.values), r.reason) for r in table.rejected]
