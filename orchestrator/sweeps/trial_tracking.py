"""Runs of trials in MLflow, below the run of their sweep, and their lines in the console."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.config.sweep_schema import SweepJob, format_value
from orchestrator.console import Echo, text
from orchestrator.errors import TrackingError
from orchestrator.events import Event, Progress
from orchestrator.paths import home
from orchestrator.planning.plan import make_plan
from orchestrator.run_files import RESULT, RUN_TAG
from orchestrator.sweeps.best_trial import trial_job
from orchestrator.sweeps.trial_table import TrialRow
from orchestrator.tracking import background, runs
from orchestrator.training import initial_weights
from orchestrator.training.job import end_run, open_run, track
from orchestrator.training.run_location import locate_run
from shards.dataset import Dataset

log = logging.getLogger(__name__)

SWEEP_TAG = "mirage.sweep"
"""Tag of a trial's run, and of a model made from it: the id of its sweep."""
SWEEP_ID_TAG = "mirage.sweep_id"
"""Tag of the sweep's own run."""
TRIAL_TAG = "mirage.sweep_trial"
PARENT_TAG = "mlflow.parentRunId"


@dataclass
class TrialTracking:
    """Tracks the trials of one sweep in the driver, which also works where MLflow is a file of its machine."""

    job: SweepJob
    sweep: str
    parent: str
    """The sweep's run in MLflow."""
    uri: str
    dataset: Dataset
    echo: Echo
    _open: dict[int, tuple[str, background.Tracker]] = field(default_factory=dict)

    def lineage(self, number: int) -> dict[str, str]:
        """Return the tags that name the sweep and the trial which something comes from."""
        return {SWEEP_TAG: self.sweep, TRIAL_TAG: str(number)}

    def start(self, row: TrialRow) -> dict[str, Any]:
        """Open the run of a trial that starts; return the facts of its `started` event. Raises TrackingError."""
        job = trial_job(self.job, self.sweep, row.number, row.generation, row.values)
        plan = make_plan(job, strict=True)
        location = locate_run(job, self.dataset)
        known = row.tracked
        if not known and (found := runs.find_run(self.uri, RUN_TAG, location.run_id, job.track.experiment)):
            known = found.id
        chosen = {f"sweep.{name}": format_value(value) for name, value in row.values.items()}
        lineage = {**self.lineage(row.number), PARENT_TAG: self.parent}
        tracked = open_run(job, self.dataset, plan, location, self.uri, known or None, lineage, chosen)
        if job.init_from is not None and not row.generation and not location.store.exists(RESULT):
            initial_weights.store_weights(job, location.store, self.uri)
        if row.number not in self._open:
            self._open[row.number] = tracked, background.Tracker(self.uri, tracked, home() / "spool")
        if row.generation:  # parameters of a run never change in MLflow, so new values are metrics
            numbers = {name: v for name, v in row.values.items() if isinstance(v, int | float)}
            self._open[row.number][1].metrics(row.step, {f"sweep/{n}": float(v) for n, v in numbers.items()})
        length = min(plan.total_steps, self.job.sweep.steps or plan.total_steps)
        return {
            "attempt": row.attempts + 1,
            "run": location.run_id,
            "tracked": tracked,
            "devices": job.workers.min * (job.workers.gpus or job.workers.cpus),
            "length": length,
            "whole": length == plan.total_steps,
        }

    def emit(self, number: int, events: Iterable[Event]) -> None:
        """Track events of a trial and print those that are not progress."""
        for event in events:
            if number in self._open:
                track(event, self._open[number][1])
            if (line := text(event)) and not isinstance(event, Progress):
                self.echo(f"trial {number}  {line}")

    def end(self, row: TrialRow, status: str, seconds: float) -> None:
        """End the run of a trial with its costs."""
        if row.number not in self._open:
            return  # ended by an earlier driver
        tracked, tracker = self._open.pop(row.number)
        tracker.close()
        wall = sum(row.seconds.values()) - row.seconds.get(row.attempts, 0.0) + seconds
        values = {f"sweep/{name}": float(value) for name, value in asdict(row.costs).items()}
        values |= {"sweep/wall_seconds": wall, "sweep/device_seconds": wall * row.devices}
        if row.psnr is not None:
            values["sweep/psnr"] = row.psnr
        try:
            background.log_metrics(self.uri, tracked, row.step, values)
        except TrackingError as error:
            log.warning("the costs of trial %d are not in MLflow: %s", row.number, error)
        end_run(self.uri, tracked, {"finished": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))

    def close(self) -> None:
        """Close the runs of trials that have not ended; they are opened again when the sweep continues."""
        for tracked, tracker in self._open.values():
            tracker.close()
            end_run(self.uri, tracked, "KILLED")
        self._open.clear()
