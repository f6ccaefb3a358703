"""Runs of trials in MLflow, below the run of their sweep, and their lines in the console."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from orchestrator.config.sweep_schema import SweepJob, format_value
from orchestrator.console import Echo, text
from orchestrator.events import Event, Progress
from orchestrator.planning.plan import make_plan
from orchestrator.run_files import RESULT, RUN_TAG
from orchestrator.sweeps.best_trial import trial_job
from orchestrator.sweeps.event_schema import Started
from orchestrator.sweeps.trial_table import TrialRow
from orchestrator.tracking import runs
from orchestrator.tracking.background import Tracker
from orchestrator.training import initial_weights, loss_network
from orchestrator.training.context import RunContext
from orchestrator.training.job import describe_run, open_run, open_tracker, track
from orchestrator.training.run_location import locate_run
from shards.dataset import Dataset

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
    _open: dict[int, tuple[RunContext, Tracker]] = field(default_factory=dict)

    def lineage(self, number: int) -> dict[str, str]:
        """Return the tags that name the sweep and the trial which something comes from."""
        return {SWEEP_TAG: self.sweep, TRIAL_TAG: str(number)}

    def start(self, row: TrialRow) -> Started:
        """Open the run of a trial that starts; return its `started` event. Raises TrackingError."""
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
        if not location.store.exists(RESULT):
            loss_network.store_network(job, location.store)
        run = RunContext(job, self.dataset, plan, location, self.uri, tracked, lineage)
        _, tracker = self._open.get(row.number) or (run, open_tracker(run, mirrors=True))
        self._open[row.number] = run, tracker
        describe_run(tracker, job, plan)
        if row.generation:  # parameters of a run never change in MLflow, so new values are metrics
            numbers = {name: v for name, v in row.values.items() if isinstance(v, int | float)}
            tracker.metrics(row.step, {f"sweep/{n}": float(v) for n, v in numbers.items()})
        length = min(plan.total_steps, self.job.sweep.steps or plan.total_steps)
        return Started(
            row.number,
            attempt=row.attempts + 1,
            run=location.run_id,
            tracked=tracked,
            devices=job.workers.min * (job.workers.gpus or job.workers.cpus),
            length=length,
            whole=length == plan.total_steps,
        )

    def emit(self, number: int, events: Iterable[Event]) -> None:
        """Track events of a trial and print those that are not progress."""
        for event in events:
            if number in self._open:
                run, tracker = self._open[number]
                track(event, tracker, run)
            if (line := text(event)) and not isinstance(event, Progress):
                self.echo(f"trial {number}  {line}")

    def end(self, row: TrialRow, status: str, seconds: float) -> None:
        """End the run of a trial with its costs."""
        if row.number not in self._open:
            return  # ended by an earlier driver
        _, tracker = self._open.pop(row.number)
        wall = sum(row.seconds.values()) - row.seconds.get(row.attempts, 0.0) + seconds
        values = {f"sweep/{name}": float(value) for name, value in asdict(row.costs).items()}
        values |= {"sweep/wall_seconds": wall, "sweep/device_seconds": wall * row.devices}
        if row.psnr is not None:
            values["sweep/psnr"] = row.psnr
        tracker.metrics(row.step, values)
        tracker.end({"finished": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))
        tracker.close()

    def close(self) -> None:
        """Close the runs of trials that have not ended; they are opened again when the sweep continues."""
        for _, tracker in self._open.values():
            tracker.end("KILLED")
            tracker.close()
        self._open.clear()
