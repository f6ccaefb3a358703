"""Run the trials of a sweep with Ray Tune, until its end or until it is asked to stop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback, TBXLoggerCallback

from orchestrator.cluster.concurrency import describe_capacity
from orchestrator.config.schema import METRIC
from orchestrator.config.sweep_schema import SYNCHRONOUS, SweepJob
from orchestrator.errors import OrchestratorError, SweepError
from orchestrator.paths import home
from orchestrator.sweeps.event_log import EventLog
from orchestrator.sweeps.ray_replay import repeat_recorded
from orchestrator.sweeps.ray_scheduler import RecordedScheduler, scheduler_of
from orchestrator.sweeps.ray_search import RecordedSearch
from orchestrator.sweeps.ray_trial import EVENTS, FATAL, SILENT_SECONDS, VALIDATED, TrialTrainable
from orchestrator.sweeps.trial_tracking import TrialTracking
from orchestrator.sweeps.trial_training import STEP, TrialTraining
from shards.errors import ShardsError

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the older progress table can be limited to a few columns
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they would write signs of life
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a sweep as SIGTERM does
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # signs of life have no metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of a job start from its own folder
}
_HEAD = "node:__internal_head__"
"""Ray's resource of the head node, of which there is 1."""
_TABLE_SECONDS = 30
_STOP_SECONDS = 120.0
"""Longest time that trials get for their checkpoints when a sweep is stopped."""


def prepare_environment() -> None:
    """Set the variables that Ray Tune reads, before Ray is connected."""
    os.environ |= _ENVIRONMENT


def run_trials(
    job: SweepJob,
    name: str,
    log: EventLog,
    training: TrialTraining,
    tracking: TrialTracking,
    *,
    concurrent: int,
    length: int,
    stop: threading.Event,
) -> tuple[bool, tune.ResultGrid]:
    """Run the sweep `name`; return whether it reached its end, and Ray Tune's results.

    `concurrent` trials of `length` steps run at the same time. When `stop` is set, running trials write a checkpoint.
    Raises SweepError, or another error that no trial caused.
    """
    search = RecordedSearch(job, log, concurrent)
    scheduler = RecordedScheduler(job, scheduler_of(job, length), search, log)
    stopper = _Stopper(stop, search)
    scheduler.stopping, scheduler.before_end = stopper.requested, tracking.end
    search.repeat_recorded = lambda: repeat_recorded(search, scheduler, log)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(search.limit)
    loggers = [JsonLoggerCallback, *([TBXLoggerCallback] if job.sweep.tensorboard else [])]
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrialTrainable, training=training),
            _resources(job, concurrent, in_process=training.waits),
        ),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=job.sweep.trials,
            reuse_actors=training.waits,
            trial_name_creator=lambda trial: f"trial {int(trial.trial_id)}",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(home() / "tune"),
            stop=stopper,
            callbacks=[_TrialEvents(job, log, tracking, stopper), *map(_validations_only, loggers)],
            verbose=1 if job.track.log == "text" else 0,
            progress_reporter=_progress_table(job),
            failure_config=tune.FailureConfig(max_failures=job.workers.max_failures),
        ),
    )
    try:
        results = tuner.fit()
    except Exception:
        if error := stopper.error or log.error:
            raise error from None
        raise
    finally:
        tracking.close()
    if stopper.error is not None:
        raise stopper.error
    return not stop.is_set() and all(row.ended for row in log.table.trials), results


def _resources(job: SweepJob, concurrent: int, *, in_process: bool) -> tune.PlacementGroupFactory:
    """Return what a trial's process asks for: its training's resources, or none if Ray Train asks for them.

    A share of the head's resource limits how many run at a time where all trials are known from the start.
    """
    own = {"CPU": job.workers.cpus} | ({"GPU": job.workers.gpus} if job.workers.gpus else {})
    share = {_HEAD: 0.99 / concurrent}
    if not in_process:
        return tune.PlacementGroupFactory([share])
    return tune.PlacementGroupFactory([own, share] if job.sweep.scheduler.name in SYNCHRONOUS else [own])


def _progress_table(job: SweepJob) -> tune.CLIReporter:
    return tune.CLIReporter(
        metric_columns={METRIC: "PSNR", STEP: "step"},
        parameter_columns={name: name.rpartition(".")[2] for name in job.sweep.space},
        max_report_frequency=_TABLE_SECONDS,
        max_progress_rows=50,
    )


def _validations_only(logger: type[tune.Callback]) -> tune.Callback:
    """Return a logger of Ray Tune without the results that are only signs of life.

    It also closes the files of trials that a stop interrupts, which Ray Tune leaves open.
    """

    class ValidationsOnly(logger):  # type: ignore[misc]
        def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
            if VALIDATED in result:
                super().log_trial_result(iteration, trial, result)

        def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
            for trial in trials:
                self.log_trial_end(trial)

    return ValidationsOnly()


class _Stopper(tune.Stopper):  # type: ignore[misc]
    """Stops a sweep on request, or after an error that no trial caused, once its trials have written checkpoints."""

    def __init__(self, stop: threading.Event, search: RecordedSearch) -> None:
        self._stop, self._search = stop, search
        self._deadline = 0.0
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune pickles it into a snapshot that nothing reads

    def requested(self) -> bool:
        """Return whether the sweep is to stop."""
        return self._stop.is_set() or self.error is not None

    def fail(self, error: Exception) -> None:
        """Stop the sweep with an error; the first one counts."""
        self.error = self.error or error

    def __call__(self, trial_id: str, result: Any) -> bool:
        """Return whether to stop one trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether to stop now: no trial is running, or the time for checkpoints is over."""
        if not self.requested():
            return False
        self._deadline = self._deadline or time.monotonic() + _STOP_SECONDS
        running = any(trial.status == Trial.RUNNING for trial in self._search.trials.values())
        return not running or time.monotonic() > self._deadline


class _TrialEvents(tune.Callback):  # type: ignore[misc]
    """Tracks what trials send with their results, and notices trials that make no progress."""

    def __init__(self, job: SweepJob, log: EventLog, tracking: TrialTracking, stopper: _Stopper) -> None:
        self._job, self._log, self._tracking, self._stopper = job, log, tracking, stopper
        self._idle_since: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def get_state(self) -> None:
        """Return no state."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that a trial's process starts."""
        row = self._log.table.trials[int(trial.trial_id)]
        self._guarded(lambda: self._log.add(self._tracking.start(row)))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Track events, and stop the sweep if the trial reports an error that it did not cause, or hangs."""
        number, silent = int(trial.trial_id), result.pop(SILENT_SECONDS, 0.0)
        self._guarded(lambda: self._tracking.emit(number, result.pop(EVENTS, ())))
        if why := result.pop(FATAL, ""):
            self._stopper.fail(SweepError(f"trial {number}: {why} Submit the sweep again to continue."))
        if silent > 60 * self._job.sweep.stall_minutes:
            self._stalled(number, f"sweep.stall_minutes ({self._job.sweep.stall_minutes:g})")

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Stop the sweep if none of its trials gets resources."""
        live = [trial for trial in trials if not trial.is_finished()]
        if not live or any(trial.status == Trial.RUNNING for trial in live):
            self._idle_since = None
            return
        self._idle_since = self._idle_since or time.monotonic()
        sweep, workers = self._job.sweep, self._job.workers
        limits = {
            f"sweep.stall_minutes ({sweep.stall_minutes:g})": 60 * sweep.stall_minutes,
            f"workers.startup_timeout_seconds ({workers.startup_timeout_seconds:g})": workers.startup_timeout_seconds,
        }
        key = min(limits, key=lambda text: limits[text])
        if time.monotonic() - self._idle_since > limits[key]:
            self._stalled(int(live[0].trial_id), key)

    def _stalled(self, number: int, limit: str) -> None:
        if not self._stopper.requested():
            told = describe_capacity(self._job.workers)
            self._stopper.fail(
                SweepError(
                    f"trial {number} made no progress for {limit}. {told} Submit the sweep again to continue."
                )
            )

    def _guarded(self, act: Callable[[], object]) -> None:
        """Call a function; an error stops the sweep, as Ray Tune would blame the trial."""
        try:
            act()
        except (OrchestratorError, ShardsError) as error:
            self._stopper.fail(error)
