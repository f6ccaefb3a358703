"""Trials on a real Ray Tune that follow a formula instead of training, and keep their position on disk.

`python -m tests.orchestrator.sweeps.formula JOB.json FOLDER CONCURRENT PAUSE` runs such a sweep in its own process.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.job_types import JobOutcome
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import METRIC
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import TrainingError
from orchestrator.events import Event, LogMessage, Validation
from orchestrator.sweeps.best_trial import trial_job
from orchestrator.sweeps.event_log import EventLog
from orchestrator.sweeps.event_schema import Started
from orchestrator.sweeps.trial_table import TrialRow, TrialTable
from orchestrator.training.driver import ControlSignal
from shards.store import LocalStore
from tests.orchestrator.sweeps.simulated import EVERY, NAME, psnr


@dataclass(frozen=True)
class FormulaTraining:
    """`TrialTraining` by formula."""

    job: Mapping[str, Any]
    folder: str
    pause: float = 0.0
    fails: Mapping[int, int] | None = None
    """Number -> step that the trial does not reach."""
    error: Exception = TrainingError("the run has diverged")  # noqa: RUF009
    waits: bool = True

    def train(self, identity: Mapping[str, Any], values: Mapping[str, Any], session: Any) -> JobOutcome:
        sweep = job_from_mapping(self.job)
        assert isinstance(sweep, SweepJob)
        number, generation = identity["number"], identity["generation"]
        job = trial_job(sweep, NAME, number, generation, dict(values))
        total = job.train.steps or 0
        checkpoint = Path(self.folder, f"{number}-{generation}.json")
        if not checkpoint.exists() and "copy" in identity:
            checkpoint.write_text(json.dumps(identity["copy"]["step"]))
        step = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0
        if step:
            session.report(step, {METRIC: psnr(job, step)})
        while step < total:
            time.sleep(self.pause)
            step += EVERY
            if (self.fails or {}).get(number, total + 1) <= step:
                raise self.error
            with Path(self.folder, "steps.log").open("a") as log:
                log.write(f"{number} {generation} {step}\n")
            session.emit(Validation(step, {METRIC: psnr(job, step)}, {"haze": 20.0}, {"haze": 1.0}))
            session.emit(LogMessage(f"validated at {step}"))
            signal = session.control_signal(step)
            checkpoint.write_text(json.dumps(step))
            if signal is ControlSignal.STOP and step < total:
                return JobOutcome("stopped", step, total)
        return JobOutcome("finished", step, total)


class StubTracking:
    """`TrialTracking` without MLflow."""

    def __init__(self, job: SweepJob) -> None:
        self._job = job
        self.events: list[tuple[int, Event]] = []

    def start(self, row: TrialRow) -> Started:
        total = self._job.train.steps or 0
        length = min(total, self._job.sweep.steps or total)
        run = f"run-{row.number}-{row.generation}"
        return Started(row.number, row.attempts + 1, run, "", 1.0, length, length == total)

    def emit(self, number: int, events: list[Event]) -> None:
        self.events += [(number, event) for event in events]

    def end(self, row: TrialRow, status: str, seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


def run_formula(
    job: SweepJob,
    folder: Path,
    concurrent: int,
    *,
    stop: threading.Event | None = None,
    tracking: StubTracking | None = None,
    **training: Any,
) -> tuple[TrialTable, bool, Any]:
    """Run the sweep on the connected cluster; return its table, whether it reached its end, and Tune's results."""
    from orchestrator.sweeps.ray_tuner import run_trials

    folder.mkdir(parents=True, exist_ok=True)
    log = EventLog(LocalStore(folder / "log"))
    log.submit(b"", code="", data=[])
    length = job.sweep.steps or job.train.steps or 0
    complete, results = run_trials(
        job,
        folder.name,
        log,
        FormulaTraining(job.model_dump(mode="json"), str(folder), **training),
        tracking or StubTracking(job),  # type: ignore[arg-type]
        concurrent=concurrent,
        length=length,
        stop=stop or threading.Event(),
    )
    return log.table, complete, results


def main(content: str, folder: str, concurrent: str, pause: str) -> None:
    from orchestrator.cluster.connection import connected
    from orchestrator.sweeps.ray_tuner import prepare_environment

    job = job_from_mapping(json.loads(Path(content).read_text()))
    assert isinstance(job, SweepJob)
    prepare_environment()
    with connected():
        run_formula(job, Path(folder), int(concurrent), pause=float(pause))


if __name__ == "__main__":
    main(*sys.argv[1:])
