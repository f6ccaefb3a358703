"""The events of a sweep as rows: one for every trial, and one for every candidate that was not run.

A row is a function of its trial's events alone, so a row whose trial has ended never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.config.constraints import Costs
from orchestrator.config.search_space import Values
from orchestrator.sweeps.event_log import Event
from orchestrator.sweeps.search import Tried
from orchestrator.training.checkpoint import METRIC

Status = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """One trial as far as the book knows it."""

    number: int
    index: int
    """Of its proposal among all, the rejected ones counted."""
    values: Values
    reason: str
    """Why it was suggested."""
    costs: Costs
    status: Status = "waiting"
    run: str = ""
    """Its run's id."""
    tracked: str = ""
    """Its run in MLflow."""
    attempts: int = 0
    devices: float = 0
    """Devices that an attempt holds: GPUs, or CPUs where there is none."""
    length: int = 0
    """Step at which it is over; 0 before it began."""
    whole: bool = True
    """Whether that is its job's end, or `sweep.steps` come before."""
    observed: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """Step -> metrics of the validation there."""
    decisions: dict[int, tuple[bool, str]] = field(default_factory=dict)
    """Rung -> whether it stops, and why."""
    ending: str = ""
    """Why it ended."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Attempt -> wall seconds, as far as they are known."""

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, PSNR [dB]) of its validations."""
        return [(step, metrics[METRIC]) for step, metrics in sorted(self.observed.items())]

    @property
    def step(self) -> int:
        """Step of its last validation, 0 before the first."""
        return max(self.observed, default=0)

    @property
    def psnr(self) -> float | None:
        """Mean PSNR [dB] of the last validation."""
        return self.observed[self.step][METRIC] if self.observed else None

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the last validation."""
        return self.observed.get(self.step, {})

    @property
    def ended(self) -> bool:
        """Whether its row is final."""
        return self.status in ("finished", "stopped", "failed")

    @property
    def cut(self) -> bool:
        """Whether it reached its length before its job's end."""
        return not self.whole and self.step >= self.length

    @property
    def stopping_rung(self) -> int | None:
        """The rung at which it was told to stop."""
        return next((step for step, (stop, _) in sorted(self.decisions.items()) if stop), None)

    @property
    def wall_seconds(self) -> float:
        """Time of all its attempts, workers' start-up among it; of a killed one up to its last validation."""
        return sum(self.seconds.values())

    @property
    def device_seconds(self) -> float:
        """The same, times the devices that were held."""
        return self.wall_seconds * self.devices


@dataclass(frozen=True)
class Rejected:
    """A candidate that was not run."""

    index: int
    values: Values
    reason: str


@dataclass
class Table:
    """What a sweep has come to."""

    trials: list[Trial] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Why the search ended before all trials were run."""

    @property
    def device_seconds(self) -> float:
        """Of all trials."""
        return sum(trial.device_seconds for trial in self.trials)

    @property
    def proposals(self) -> int:
        """Candidates so far, run or rejected."""
        return len(self.trials) + len(self.rejected)

    def tried(self, against: str | None) -> list[Tried]:
        """Return all proposals as the search sees them, in their order."""
        found = [(r.index, Tried(r.values, None)) for r in self.rejected]
        found += [(trial.index, _as_tried(trial, against)) for trial in self.trials]
        return [tried for _, tried in sorted(found, key=lambda pair: pair[0])]

    def ranked(self) -> list[Trial]:
        """Return finished trials from the best on, then stopped ones by how far they came, then the others."""
        order = {"finished": 0, "stopped": 1, "running": 2, "waiting": 3, "failed": 4}

        def rank(trial: Trial) -> tuple[float, ...]:
            far = -trial.step if trial.status != "finished" else 0
            psnr = trial.psnr
            return (
                order[trial.status],
                far,
                -psnr if psnr is not None else 0,
                trial.costs.parameters,
                trial.number,
            )

        return sorted(self.trials, key=rank)

    def best(self) -> Trial | None:
        """Return the finished trial of the highest PSNR, of equals the smallest; None when none finished."""
        return next((trial for trial in self.ranked() if trial.status == "finished"), None)


def table_of(events: Iterable[Event]) -> Table:
    """Return the table that the events make."""
    table = Table()
    for event in events:
        apply(table, event)
    return table


def apply(table: Table, event: Event) -> None:
    """Let one event happen to the table."""
    kind = event["kind"]
    if kind == "rejected":
        table.rejected.append(Rejected(event["index"], dict(event["values"]), event["reason"]))
    elif kind == "suggested":
        table.trials.append(
            Trial(
                event["number"],
                event["index"],
                dict(event["values"]),
                event["reason"],
                Costs(**event["costs"]),
            )
        )
    elif kind == "exhausted":
        table.notes.append(event["reason"])
    elif "number" in event:
        _happens(table.trials[event["number"]], event)


def _happens(trial: Trial, event: Event) -> None:
    kind = event["kind"]
    if kind == "started":
        trial.status, trial.attempts = "running", event["attempt"]
        trial.run, trial.tracked, trial.devices = event["run"], event["tracked"], event["devices"]
        trial.length, trial.whole = event["length"], event["whole"]
    elif kind == "observed":
        trial.observed.setdefault(event["step"], event["metrics"])
        for made in event["decisions"]:
            trial.decisions.setdefault(made["step"], (made["stop"], made["reason"]))
        trial.seconds[event["attempt"]] = event["seconds"]
    elif kind == "ended" and not trial.ended:
        trial.status, trial.ending = event["status"], event["reason"]
        if trial.attempts:
            trial.seconds[trial.attempts] = event["seconds"]


def second_objective(trial: Trial, against: str) -> float:
    """Return the cost that a search of two objectives makes small."""
    value: Any = getattr(trial.costs, against)
    return float(value)


def _as_tried(trial: Trial, against: str | None) -> Tried:
    if not trial.ended:
        return Tried(trial.values, None, running=True)
    if trial.status == "failed" or trial.psnr is None:
        return Tried(trial.values, None)
    scores = (trial.psnr, second_objective(trial, against)) if against else (trial.psnr,)
    return Tried(trial.values, scores, trial.step, trial.status == "finished")
