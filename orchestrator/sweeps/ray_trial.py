"""A trial as Ray Tune runs it; its process serves one trial after another.

A step of Ray Tune returns the next validation, or a sign of life after some seconds. Checkpoints are those of the run,
in the store; Ray Tune only keeps their names.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping
from typing import Any

import pyarrow.fs
from ray import tune
from ray.train._internal.session import _TrainingResult

from orchestrator.config.job_types import JobOutcome
from orchestrator.config.schema import METRIC
from orchestrator.errors import ModelError, TrainingError, is_out_of_memory
from orchestrator.sweeps.trial_training import STEP, TrialSession, TrialTraining

TRIAL = "trial"
"""Key of a trial's configuration that holds its number and generation; the others are its parameters."""

VALIDATED, FAILURE, FATAL = "validated", "failure", "fatal"
"""Keys of a result: a new validation; why the trial fails, and would again; why the sweep cannot continue."""
EVENTS, SILENT_SECONDS = "events", "silent_seconds"
"""Keys of every result: events since the last one, time since the newest event."""

_OWN_FAILURES = (TrainingError, ModelError, MemoryError)
"""Errors that end a trial and not the sweep."""


def checkpoint_reference(identity: Mapping[str, Any], metrics: Mapping[str, Any]) -> _TrainingResult:
    """Return what Ray Tune keeps as a trial's checkpoint: a name."""
    name = f"/trial-{identity['number']}-{identity['generation']}"
    return _TrainingResult(tune.Checkpoint(name, pyarrow.fs.LocalFileSystem()), dict(metrics))


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """A class trainable of Ray Tune."""

    def setup(self, config: dict[str, Any], training: TrialTraining | None = None) -> None:
        """Take the configuration; training starts with the first step."""
        assert training is not None, "`tune.with_parameters` gives it"
        self._training = training
        self._session: TrialSession | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End this trial and serve another one."""
        self.cleanup()
        self._identity = new_config[TRIAL]
        self._values = {name: value for name, value in new_config.items() if name != TRIAL}
        self._last: dict[str, Any] = {}
        self._failure = ""
        return True

    def step(self) -> dict[str, Any]:
        """Return the next validation, or a sign of life. Raises TrainingError after a failure was reported."""
        if self._failure:
            raise TrainingError(self._failure)
        if self._session is None:
            self._session = TrialSession(self._training, self._identity, self._values)
        session, message = self._session, self._session.next()
        told: dict[str, Any] = {}
        if isinstance(message, dict) and math.isfinite(message[METRIC]):
            self._last = {key: v for key, v in message.items() if math.isfinite(v)}
            told = {VALIDATED: True}
        elif isinstance(message, dict):
            self._failure = f"the validation at step {message[STEP]} is not finite: the run has diverged"
        elif isinstance(message, JobOutcome) and message.status == "finished":
            told = {"done": True, "seconds": session.seconds}
        elif isinstance(message, JobOutcome):
            self._failure = "it was stopped before its end: workers.max_runtime_hours are over"
        elif message is not None:
            self._failure = _failure(message)
            if not self._failure:
                told = {FATAL: "".join(traceback.format_exception_only(message)).strip()}
        told |= {FAILURE: self._failure} if self._failure else {}
        events, silent = session.take_events(), session.silent_seconds
        return {**self._last, **told, EVENTS: events, SILENT_SECONDS: silent}

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """End training with a checkpoint in the store, and return its name; the next step resumes it."""
        self.cleanup()
        return checkpoint_reference(self._identity, self._last)

    def restore(self, checkpoint_path: Any) -> None:
        """Do nothing: training finds its newest checkpoint in the store."""

    def cleanup(self) -> None:
        """End training with a checkpoint."""
        if self._session is not None:
            self._session.end()
            self._session = None


def _failure(error: Exception) -> str:
    """Return why the trial fails, "" if the trial did not cause the error."""
    text = " ".join(str(error).split()).partition(" Submit the job again")[0] or type(error).__name__
    if is_out_of_memory(error):
        return f"out of memory: {text}"
    return text if isinstance(error, _OWN_FAILURES) else ""
