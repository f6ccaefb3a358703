"""Repeat the recorded events of a sweep, so that its searcher and scheduler reach the state that they had."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.sweeps.event_log import EventLog
from orchestrator.sweeps.event_schema import Ended, Observed, Rejected, Suggested, SweepEvent
from orchestrator.sweeps.ray_scheduler import RecordedScheduler
from orchestrator.sweeps.ray_search import RecordedSearch
from orchestrator.sweeps.ray_trial import TRIAL, checkpoint_reference


def repeat_recorded(search: RecordedSearch, scheduler: RecordedScheduler, log: EventLog) -> list[Trial]:
    """Repeat all recorded events and return the trials, of which some have ended and others are to be continued."""
    controller = ReplayController(search, scheduler)
    while (event := log.next) is not None:
        controller.repeat(event)
        if log.next is event:
            raise log.mismatch(event, "nothing")
    for trial in controller.get_trials():
        if trial.status == Trial.RUNNING:
            trial.set_status(Trial.PENDING)
    return controller.get_trials()


class ReplayController:
    """What a scheduler sees of Ray Tune's `TuneController`, without processes: trials do what the events say."""

    def __init__(self, search: RecordedSearch, scheduler: RecordedScheduler) -> None:
        self.search_alg, self._scheduler = search, scheduler

    def get_trials(self) -> list[Trial]:
        """Return all trials."""
        return list(self.search_alg.trials.values())

    def get_live_trials(self) -> list[Trial]:
        """Return the trials that have not ended."""
        return [trial for trial in self.get_trials() if not trial.is_finished()]

    def stop_trial(self, trial: Trial) -> None:
        """End a trial; called for others than the one that reports."""
        if not trial.is_finished():
            self._scheduler.on_trial_remove(self, trial)
            self._complete(trial)

    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None:
        """Pause a trial."""
        trial.set_status(Trial.PAUSED)

    def _schedule_trial_save(self, trial: Trial, result: dict[str, Any] | None = None) -> Any:
        """Return the checkpoint that a scheduler asks for."""
        trial.on_checkpoint(checkpoint_reference(trial.config[TRIAL], dict(result or {})))
        return trial.checkpoint

    def repeat(self, event: SweepEvent) -> None:
        """Repeat one event together with its consequences, which are recorded too."""
        trials = self.search_alg.trials
        match event:
            case Rejected() | Suggested():
                if (trial := self.search_alg.new_trial()) is not None:
                    self._scheduler.on_trial_add(self, trial)
            case Observed():
                self._observe(trials[event.number], event)
            case Ended(status="failed"):
                self._scheduler.fail(self, trials[event.number], event.reason)
                trials[event.number].set_status(Trial.ERROR)
                self.search_alg.on_trial_complete(trials[event.number].trial_id, error=True)
            case Ended(status="finished"):
                self._scheduler.on_trial_complete(self, trials[event.number], {})
                self._complete(trials[event.number])
            case _:  # decided while no trial was running
                self._scheduler.choose_trial_to_run(self)

    def _observe(self, trial: Trial, event: Observed) -> None:
        if trial.status == Trial.PAUSED:
            self._scheduler.choose_trial_to_run(self)
        trial.set_status(Trial.RUNNING)
        decision = self._scheduler.observe(self, trial, event.step, event.metrics, event.seconds)
        trial.update_last_result({**event.metrics, "step": event.step, "training_iteration": event.step})
        if decision == TrialScheduler.STOP:
            self._scheduler.on_trial_complete(self, trial, {})
            self._complete(trial)
            return
        self.search_alg.on_trial_result(trial.trial_id, {})
        if decision == TrialScheduler.PAUSE:
            self._schedule_trial_save(trial, trial.last_result)
            self.pause_trial(trial)

    def _complete(self, trial: Trial) -> None:
        trial.set_status(Trial.TERMINATED)
        self.search_alg.on_trial_complete(trial.trial_id)
