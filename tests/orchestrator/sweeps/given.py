"""Trials by a formula: they validate, stop when asked and go on where they stopped, as trained ones do."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.config.schema import Job
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.sweeps.controller import Controller, Watch
from orchestrator.sweeps.event_log import Book
from orchestrator.sweeps.trial_table import Table, Trial
from orchestrator.training.checkpoint import METRIC
from shards.store import Store

NAME = "mine-0123456789"


def psnr(job: Job, step: int) -> float:
    """Better with width, best at an SPD weight of 0.01, and better with time."""
    width = math.log2(job.model.dim or 24)
    weight = abs(math.log10(job.loss.spd_weight or 1e-9) + 2)
    return round(20 + width - 0.3 * weight - 40 / (step + 10), 4)


class GivenTrials:
    """Runs trials by a formula; each keeps its position, as a checkpoint would."""

    def __init__(
        self,
        curve: Callable[[Job, int], float] = psnr,
        every: int = 10,
        fails: Mapping[int, BaseException] | None = None,
        pause: float = 0.0,
    ) -> None:
        self.curve, self.every, self.fails, self.pause = curve, every, fails or {}, pause
        self.position: dict[int, int] = {}
        self.steps_run: dict[int, int] = {}
        self.begun: list[int] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, trial: Trial, job: Job, watch: Watch) -> bool:
        total = job.train.steps or 0
        self.begun.append(trial.number)
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            watch.started(f"run-{trial.number}", f"tracked-{trial.number}", 1.0, total)
            if trial.number in self.fails:
                raise self.fails[trial.number]
            step = self.position.get(trial.number, 0)
            while step < total and not watch.asked.is_set():
                time.sleep(self.pause)
                step += self.every
                self.position[trial.number] = step
                self.steps_run[trial.number] = self.steps_run.get(trial.number, 0) + self.every
                watch.observed(step, {METRIC: self.curve(job, step), "val/5deg/haze/psnr": 20.0})
            return step >= total
        finally:
            with self._lock:
                self._now -= 1


def run(
    job: SweepJob, store: Store, trials: GivenTrials | None = None, room: int = 1, stopping: Any = None
) -> tuple[Table, bool]:
    """Run the sweep with its book in `store`; return the table and whether it came to its end."""
    controller = Controller(job, NAME, Book(store), trials or GivenTrials(), room, lambda line: None)
    over = controller.run(stopping or (lambda: False), lambda: "It is a test.")
    return controller.table, over


def rows(table: Table) -> Sequence[tuple[object, ...]]:
    """Return all of the table but times."""
    return [
        (t.number, str(t.values), t.reason, t.status, t.ending, t.curve, t.decisions) for t in table.trials
    ] + [(r.index, str(r.values), r.reason) for r in table.rejected]
