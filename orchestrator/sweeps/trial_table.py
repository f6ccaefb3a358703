"""The state of a sweep as a function of its events: one row per trial, one per candidate that was not run.

A row depends on its trial's events alone (and, with `pbt`, on those of trials that it copied), so a row whose trial has
ended never changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.config.constraints import QUANTITIES, Costs
from orchestrator.config.schema import METRIC
from orchestrator.config.search_space import Values
from orchestrator.evaluation.ranking import rank_value

Event = Mapping[str, Any]
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


@dataclass(frozen=True)
class RejectedCandidate:
    """A candidate that was not run."""

    values: Values
    reason: str


@dataclass
class TrialTable:
    """All rows of a sweep."""

    trials: list[TrialRow] = field(default_factory=list)
    rejected: list[RejectedCandidate] = field(default_factory=list)
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

    def best(self) -> TrialRow | None:
        """Return the finished trial with the highest PSNR, the smallest of equals; None if none finished."""
        return next((t for t in self.ranked() if t.status == "finished" and t.psnr is not None), None)


def table_of(events: Iterable[Event]) -> TrialTable:
    """Return the table that results from the events."""
    table = TrialTable()
    for event in events:
        apply(table, event)
    return table


def apply(table: TrialTable, event: Event) -> None:
    """Update the table by one event. Raises LookupError if it names a trial or a step that no event before has."""
    match event["kind"]:
        case "rejected":
            table.rejected.append(RejectedCandidate(dict(event["values"]), event["reason"]))
        case "suggested":
            if event["number"] != len(table.trials):
                raise LookupError(event["number"])
            costs = Costs(**{name: event["costs"][name] for name in QUANTITIES})
            table.trials.append(TrialRow(event["number"], dict(event["values"]), event["reason"], costs))
        case "exhausted":
            table.notes.append(event["reason"])
        case "exploited":
            _copy(table.trials[event["number"]], table.trials[event["origin"]], event)
        case "started" | "observed" | "ended":
            _update(table.trials[event["number"]], event)


def _update(trial: TrialRow, event: Event) -> None:
    if event["kind"] == "started":
        trial.status, trial.attempts = "running", event["attempt"]
        trial.run, trial.tracked, trial.devices = event["run"], event["tracked"], event["devices"]
        trial.length, trial.whole = event["length"], event["whole"]
    elif event["kind"] == "observed":
        trial.step = event["step"]
        trial.observed[trial.step] = event["metrics"]
        trial.seconds[event["attempt"]] = event["seconds"]
    elif not trial.ended:
        trial.status, trial.ending = event["status"], event["reason"]
        if trial.attempts:
            trial.seconds[trial.attempts] = event["seconds"]


def _copy(trial: TrialRow, origin: TrialRow, event: Event) -> None:
    """Continue a row with the weights that another trial had at a step, and with new values."""
    trial.step, trial.values = event["step"], dict(event["values"])
    trial.generation += 1
    trial.observed = {step: metrics for step, metrics in trial.observed.items() if step < trial.step}
    trial.observed[trial.step] = origin.observed[trial.step]
