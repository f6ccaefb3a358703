"""The state of a sweep as a function of its events: one row per trial, one per candidate that was not run.

A row depends on its trial's events alone (and, with `pbt`, on those of trials that it copied), so a row whose trial has
ended never changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.config.constraints import Costs
from orchestrator.config.schema import METRIC
from orchestrator.config.search_space import Values
from orchestrator.evaluation.ranking import rank_value
from orchestrator.sweeps.event_schema import (
    Ended,
    Exhausted,
    Exploited,
    Observed,
    Rejected,
    Started,
    Suggested,
    SweepEvent,
)

Status = Literal["waiting", "running", "finished", "stopped", "failed"]
_RANKS: Mapping[Status, int] = {"finished": 0, "stopped": 1, "running": 2, "waiting": 3, "failed": 4}


@dataclass
class TrialRow:
    """One trial, as far as the event log knows it."""

    number: int
    values: Values
    reason: str
    """Why it was suggested."""
    costs: Costs
    status: Status = "waiting"
    run: str = ""
    """Id of its run."""
    tracked: str = ""
    """Id of its run in MLflow."""
    attempts: int = 0
    """How often its process started."""
    devices: float = 0
    """GPUs that it holds while it runs, or CPUs if it uses none."""
    length: int = 0
    """Step at which it ends; 0 before it starts."""
    whole: bool = True
    """Whether that is its job's end; False where `sweep.steps` is less."""
    step: int = 0
    """Step of its newest validation; after a copy, step of the copied weights."""
    observed: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """Step -> metrics of the validation."""
    generation: int = 0
    """How often it copied weights of another trial; each copy starts a new run."""
    ending: str = ""
    """Why it ended."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Attempt -> wall seconds until its newest event."""

    def update(self, event: Started | Observed | Ended) -> None:
        """Note what happened to the trial; once it has ended, nothing changes its row."""
        match event:
            case Started():
                self.status, self.attempts = "running", event.attempt
                self.run, self.tracked, self.devices = event.run, event.tracked, event.devices
                self.length, self.whole = event.length, event.whole
            case Observed():
                self.step = event.step
                self.observed[self.step] = event.metrics
                self.seconds[event.attempt] = event.seconds
            case Ended() if not self.ended:
                self.status, self.ending = event.status, event.reason
                if self.attempts:
                    self.seconds[self.attempts] = event.seconds

    def copy(self, origin: TrialRow, event: Exploited) -> None:
        """Continue with the weights that another trial had at a step, and with new values."""
        self.step, self.values = event.step, event.values
        self.generation += 1
        self.observed = {step: metrics for step, metrics in self.observed.items() if step < self.step}
        self.observed[self.step] = origin.observed[self.step]

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, PSNR [dB]) of its validations that are finite."""
        found = ((step, metrics.get(METRIC)) for step, metrics in sorted(self.observed.items()))
        return [(step, psnr) for step, psnr in found if psnr is not None and math.isfinite(psnr)]

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the newest validation."""
        return self.observed.get(self.step, {})

    @property
    def psnr(self) -> float | None:
        """Mean PSNR [dB] of the newest validation; None if it is not finite."""
        psnr = self.metrics.get(METRIC)
        return psnr if psnr is not None and math.isfinite(psnr) else None

    @property
    def ended(self) -> bool:
        """Whether the row is final."""
        return self.status in ("finished", "stopped", "failed")

    @property
    def wall_seconds(self) -> float:
        """Wall time of all attempts, including start-up."""
        return sum(self.seconds.values())

    @property
    def device_seconds(self) -> float:
        """Wall time multiplied by the devices that were held."""
        return self.wall_seconds * self.devices


@dataclass
class TrialTable:
    """All rows of a sweep."""

    trials: list[TrialRow] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Why fewer trials than asked for were run."""

    @property
    def device_seconds(self) -> float:
        """Device-seconds of all trials."""
        return sum(trial.device_seconds for trial in self.trials)

    @property
    def candidates(self) -> int:
        """Candidates so far, run or rejected."""
        return len(self.trials) + len(self.rejected)

    def ranked(self) -> list[TrialRow]:
        """Return finished trials from the best down, then stopped ones by step, then the others."""

        def rank(trial: TrialRow) -> tuple[float, ...]:
            step = 0 if trial.status == "finished" else -trial.step
            return (_RANKS[trial.status], step, -rank_value(trial.psnr), trial.costs.parameters, trial.number)

        return sorted(self.trials, key=rank)

    def apply(self, event: SweepEvent) -> None:
        """Update the table by one event. Raises LookupError if it names a trial or a step that no event before has."""
        match event:
            case Rejected():
                self.rejected.append(event)
            case Suggested():
                if event.number != len(self.trials):
                    raise LookupError(event.number)
                self.trials.append(TrialRow(event.number, event.values, event.reason, event.costs))
            case Exhausted():
                self.notes.append(event.reason)
            case Exploited():
                self.trials[event.number].copy(self.trials[event.origin], event)
            case Started() | Observed() | Ended():
                self.trials[event.number].update(event)

    def best(self) -> TrialRow | None:
        """Return the finished trial with the highest PSNR, the smallest of equals; None if none finished."""
        return next((t for t in self.ranked() if t.status == "finished" and t.psnr is not None), None)


def table_of(events: Iterable[SweepEvent]) -> TrialTable:
    """Return the table that results from the events."""
    table = TrialTable()
    for event in events:
        table.apply(event)
    return table
