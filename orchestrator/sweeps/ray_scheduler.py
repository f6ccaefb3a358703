"""Trial schedulers of Ray Tune by name, with the event log beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler, create_scheduler

from orchestrator.config.schema import METRIC
from orchestrator.config.search_space import rounded
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import SweepError
from orchestrator.sweeps.event_log import EventLog
from orchestrator.sweeps.event_schema import Ended, EndStatus, Exploited, Observed
from orchestrator.sweeps.ray_search import RecordedSearch, result_of, tune_domain
from orchestrator.sweeps.ray_trial import FAILURE, TRIAL
from orchestrator.sweeps.trial_table import TrialRow
from orchestrator.sweeps.trial_training import STEP

_ROUND = "round"
"""Time of `hyperband`: steps divided by `first_steps`."""
_TUNE_NAMES = {"none": "fifo", "asha": "async_hyperband", "median": "median_stopping_rule"}
"""Scheduler -> Ray Tune's name if it is another."""


def scheduler_of(job: SweepJob, length: int) -> TrialScheduler:
    """Return the sweep's scheduler for trials of `length` steps. Raises SweepError if its package is missing."""
    own, name = job.sweep.scheduler, job.sweep.scheduler.name
    options: dict[str, Any] = {
        **{"metric": METRIC, "mode": "max", "time_attr": STEP, "max_t": length},
        **{"grace_period": own.first_steps, "reduction_factor": own.reduction, "min_time_slice": length},
    }
    if name == "asha":
        options["stop_last_trials"] = False
    if name == "hyperband":
        options |= {"time_attr": _ROUND, "max_t": length // own.first_steps}
    if name in ("pbt", "pb2"):
        changing = {key: d for key, d in job.sweep.space.items() if d.bounds or len(d.values or ()) > 1}
        ranges = {key: domain for key, domain in changing.items() if domain.bounds}
        options |= {
            "perturbation_interval": own.first_steps,
            "quantile_fraction": 1 / own.reduction,
            "hyperparam_mutations": {
                key: tune_domain(domain) if domain.bounds else list(domain.values or ())
                for key, domain in changing.items()
            },
            "hyperparam_bounds": {key: list(domain.bounds or ()) for key, domain in changing.items()},
            "custom_explore_fn": lambda config: {
                key: rounded(ranges[key], float(value)) if key in ranges else value
                for key, value in config.items()
            },
            "synch": True,  # trials are compared at equal steps, however fast each one is
            "log_config": False,
        }
    try:
        return create_scheduler(_TUNE_NAMES.get(name, name), **options)
    except RuntimeError as error:
        raise SweepError(f"scheduler {name}: {error}") from error


class RecordedScheduler(TrialScheduler):  # type: ignore[misc]
    """A scheduler of Ray Tune whose observations and decisions are recorded before they take effect."""

    _supports_buffered_results = False
    _metric = METRIC

    def __init__(self, job: SweepJob, inner: TrialScheduler, search: RecordedSearch, log: EventLog) -> None:
        super().__init__()
        self._sweep, self._inner, self._search, self._log = job.sweep, inner, search, log
        self._added: set[str] = set()
        self._stops: dict[int, str] = {}
        self._failures: dict[int, str] = {}
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the sweep is being stopped, so that trials write a checkpoint and pause."""
        self.before_end: Callable[[TrialRow, str, float], None] = lambda row, status, seconds: None
        """Called with row, status and seconds before the end of a trial is recorded."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune pickles it into files that nothing reads

    def set_search_properties(self, metric: Any, mode: Any, **spec: Any) -> bool:
        """Accept that the sweep itself defines the metric."""
        return True

    def on_trial_add(self, controller: Any, trial: Trial) -> None:
        """Add a trial once; one whose process died, or of an earlier driver, is known."""
        if trial.trial_id not in self._added:
            self._added.add(trial.trial_id)
            with self._seeded(0):
                self._inner.on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Return what a trial does next."""
        row = self._row(trial)
        if why := result.get(FAILURE):
            self._failures[row.number] = str(why)
            trial.max_failures = 0  # its next step raises, and another attempt would fail again
            return str(TrialScheduler.CONTINUE)
        if self.stopping():
            return str(TrialScheduler.PAUSE)
        if row.length and row.step >= row.length:
            return self._at_end(row)
        if METRIC not in result or result[STEP] <= row.step:
            return str(TrialScheduler.CONTINUE)  # a sign of life, or a validation that an attempt repeats
        metrics = {name: value for name, value in result.items() if name.startswith("val/")}
        return self.observe(controller, trial, result[STEP], metrics, result["seconds"])

    def observe(
        self, controller: Any, trial: Trial, step: int, metrics: Mapping[str, float], seconds: float
    ) -> str:
        """Record a validation and return what the scheduler decides."""
        row = self._row(trial)
        self._log.add(Observed(row.number, row.attempts, step, metrics, seconds))
        if step >= row.length:
            return self._at_end(row)
        told = self._told(row)
        decision = str(self._ask(controller, trial, told))
        if decision == TrialScheduler.STOP:
            self._stops[row.number] = self._stop_reason(row)
        self._search.results[row.number] = told
        return decision

    @staticmethod
    def _at_end(row: TrialRow) -> str:
        """Return what a trial does at its last step: its run ends by itself, unless `sweep.steps` comes before."""
        return str(TrialScheduler.CONTINUE if row.whole else TrialScheduler.STOP)

    def on_trial_complete(self, controller: Any, trial: Trial, result: Mapping[str, Any]) -> None:
        """Record that a trial finished, or stopped as decided."""
        row = self._row(trial)
        if row.psnr is None:
            self.fail(controller, trial, "it ended without a validation")
            return
        stop = self._stops.get(row.number)
        reason = stop or f"{row.psnr:.2f} dB at step {row.step}"
        self._end(row, "stopped" if stop else "finished", reason, result.get("seconds"))
        self._inner.on_trial_complete(controller, trial, self._told(row))

    def on_trial_remove(self, controller: Any, trial: Trial) -> None:
        """Record that the scheduler stopped a paused trial."""
        row = self._row(trial)
        self._end(row, "stopped", self._stop_reason(row))
        self._inner.on_trial_remove(controller, trial)

    def on_trial_error(self, controller: Any, trial: Trial) -> None:
        """Record that a trial failed, unless only its process died and another one continues."""
        number = self._row(trial).number
        if number not in self._failures and trial.should_recover():
            self._log.echo(f"trial {number}    its process ended unexpectedly; another one resumes it")
            return
        lines = [line.strip() for line in str(trial.get_error() or "").splitlines() if line.strip()]
        died = f"its process ended unexpectedly: {lines[-1] if lines else 'no reason is known'}"
        self.fail(controller, trial, self._failures.get(number, died))

    def fail(self, controller: Any, trial: Trial, reason: str) -> None:
        """Record that a trial failed."""
        self._end(self._row(trial), "failed", reason)
        self._inner.on_trial_error(controller, trial)

    def choose_trial_to_run(self, controller: Any) -> Trial | None:
        """Return the trial that starts next.

        If all trials wait for one that failed, the scheduler compares those that are left.
        """
        if self.stopping():
            return None
        chosen = self._inner.choose_trial_to_run(controller)
        live = [trial for trial in controller.get_live_trials() if not trial.is_finished()]
        if chosen is None and live and all(trial.status == Trial.PAUSED for trial in live):
            first = min(live, key=lambda trial: str(trial.trial_id))
            self._ask(controller, first, self._told(self._row(first)))
            chosen = self._inner.choose_trial_to_run(controller)
        return chosen

    def debug_string(self) -> str:
        """Return a line of Ray Tune's progress table."""
        return str(self._inner.debug_string())

    def _row(self, trial: Trial) -> TrialRow:
        return self._log.table.trials[int(trial.trial_id)]

    def _told(self, row: TrialRow) -> dict[str, Any]:
        return {**result_of(row), _ROUND: row.step / self._sweep.scheduler.first_steps}

    def _ask(self, controller: Any, trial: Trial, told: dict[str, Any]) -> Any:
        """Ask the scheduler, and record which trials it let copy others."""
        with self._seeded(told[STEP]):
            decision = self._inner.on_trial_result(controller, trial, told)
        for other in controller.get_trials():
            if other.config[TRIAL]["number"] != int(other.trial_id):
                self._record_copy(other)
        return decision

    def _record_copy(self, trial: Trial) -> None:
        """Record that a trial has another one's configuration now, and give it back its own number."""
        row, origin = self._row(trial), self._log.table.trials[trial.config[TRIAL]["number"]]
        values = {name: value for name, value in trial.config.items() if name != TRIAL}
        event = self._log.add(Exploited(row.number, origin.number, origin.step, values))
        copy = {"run": origin.run, "step": origin.step}
        identity = {"number": row.number, "generation": row.generation, "copy": copy}
        trial.set_config({TRIAL: identity, **event.values})

    def _end(self, row: TrialRow, status: EndStatus, reason: str, seconds: float | None = None) -> None:
        seconds = max(row.seconds.get(row.attempts, 0.0), seconds or 0.0)
        self.before_end(row, status, seconds)
        self._log.add(Ended(row.number, status, reason, seconds))

    def _stop_reason(self, row: TrialRow) -> str:
        name, text = self._sweep.scheduler.name, f"{row.psnr:.2f} dB at step {row.step}"
        if name == "asha":
            curves = (dict(trial.curve) for trial in self._log.table.trials)
            scores = [curve[row.step] for curve in curves if row.step in curve]
            text += f", rank {1 + sum(score > (row.psnr or 0) for score in scores)} of {len(scores)} so far"
        return f"{text}: stopped by {name}"

    @contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """Make random choices of the scheduler a function of the sweep's seed and the step."""
        states = random.getstate(), np.random.get_state()
        random.seed(f"{self._sweep.search.seed}-{step}")
        np.random.seed((self._sweep.search.seed * 1_000_003 + step) % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
