"""Measure the steps of one worker and report them: losses, throughput, the node's load, and a profile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from orchestrator.events import Metrics, ProfileWritten, Progress
from orchestrator.training.backlog import Backlog
from orchestrator.training.driver import Driver
from orchestrator.training.loss_breakdown import with_breakdown
from orchestrator.training.profiling import StepProfiler
from orchestrator.training.run_state import TrainingRun
from orchestrator.training.system_metrics import NodeMetrics
from shards.store import Store

T = TypeVar("T")


class Monitor:
    """The measurements of a run since it started or resumed; no training decision depends on them."""

    def __init__(self, run: TrainingRun, total_steps: int, store: Store, driver: Driver) -> None:
        self._run, self._total_steps, self._driver = run, total_steps, driver
        self._store_uri = store.uri
        self._first_step = run.step
        self._started = self._logged_at = self._node_read_at = time.monotonic()
        self._waited_seconds = 0.0
        self._steps: list[dict[str, Tensor]] = []
        """Scalars of the steps since the previous log."""
        self._backlog = Backlog(run.engine.device)
        self._node = NodeMetrics.of_this_worker(run.engine.device)
        profile = run.job.profile if run.engine.rank == 0 else None
        self._profiling = StepProfiler(profile, run.step, store) if profile else None

    def timed(self, data: Iterator[T]) -> Iterator[T]:
        """Yield from `data` and add up how long it takes to arrive."""
        while True:
            asked = time.monotonic()
            item = next(data, None)
            self._waited_seconds += time.monotonic() - asked
            if item is None:
                return
            yield item

    def step_taken(self, scalars: dict[str, Tensor]) -> None:
        """Record the scalars of the newest step; profile it and read the node's load if due."""
        run = self._run
        self._steps.append(scalars)
        self._backlog.step_queued()
        run.clock.step_ended()
        last = run.step == self._total_steps
        if self._profiling is not None and (trace := self._profiling.step_taken(run.step, last=last)):
            self._driver.emit(ProfileWritten(f"{self._store_uri}/{trace}"))
        now = time.monotonic()
        if self._node is not None and now - self._node_read_at >= run.job.track.system_metrics_seconds:
            self._node_read_at = now
            self._driver.emit(Metrics(run.step, self._node.read()))

    def log(self) -> None:
        """Report means since the previous log; single steps are too noisy. All workers call this together.

        Raises TrainingError if too many steps in a row were skipped.
        """
        run, engine = self._run, self._run.engine
        run.skipped.require_finite_steps(run.step)
        names = sorted(self._steps[0])
        mean = torch.stack([torch.stack([step[n].float() for n in names]) for step in self._steps]).mean(0)
        means = dict(zip(names, engine.all_reduce_sum(mean).tolist(), strict=True))
        values = with_breakdown(run.job, means)
        values["optim/lr"] = run.learning_rate(run.step - 1)
        values |= self._throughput()
        values["optim/skipped_steps"] = float(run.skipped.total())
        if run.job.data.on_corrupt == "skip":
            skipped = engine.all_reduce_sum(mean.new_tensor([run.skipped_samples]))
            values["data/skipped_samples"] = float(skipped)
        if engine.rank == 0:
            self._driver.emit(Progress(run.step, values, self._total_steps, self._seconds_left()))
        self._steps.clear()

    def _throughput(self) -> dict[str, float]:
        """Return images per second and the share of time spent waiting for data, since the previous log."""
        now = time.monotonic()
        seconds = max(now - self._logged_at, 1e-9)
        images = len(self._steps) * self._run.stages.at_step(self._run.step - 1).batch
        values = {
            "perf/images_per_second": images / seconds,
            "perf/data_wait": self._waited_seconds / seconds,
        }
        self._logged_at, self._waited_seconds = now, 0.0
        return values

    def _seconds_left(self) -> float:
        step = self._run.step
        per_step = (time.monotonic() - self._started) / max(step - self._first_step, 1)
        return per_step * (self._total_steps - step)
