"""Fault schedule and report of `mirage chaos`; `ray_chaos` injects the faults."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from orchestrator.events import Event, Progress, Resumed, WorkersStarted
from orchestrator.resilience.resume_proof import Proof
from orchestrator.tables import aligned

FaultKind = Literal[
    "worker killed",
    "driver killed",
    "job stopped",
    "node lost",
    "raylet stopped",
    "store faulty",
    "tracking unavailable",
]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
KILL_KINDS = tuple(kind for kind in FAULT_KINDS if kind not in ("store faulty", "tracking unavailable"))
"""Faults after which new workers resume from a checkpoint."""


@dataclass(frozen=True)
class ScheduledFault:
    """A fault to inject when the run has reached a step."""

    kind: FaultKind
    step: int


@dataclass(frozen=True)
class FaultOutcome:
    """Result of one injected fault."""

    fault: ScheduledFault
    at_step: int
    """Newest step that the driver had reported at injection."""
    seconds: float | None
    """Time until training continued; None if it did not, or if the fault had no target."""
    repeated: int = 0
    """Number of steps that were computed again."""


def repeated_steps(events: Sequence[Event], at_step: int) -> int | None:
    """Return how many steps new workers repeat after a kill, or None before their first step.

    events: those after the kill. at_step: newest reported step before it.
    """
    started = next((n for n, e in enumerate(events) if isinstance(e, WorkersStarted | Resumed)), len(events))
    first = next((e.step for e in events[started:] if isinstance(e, Progress)), None)
    return None if first is None else max(0, max(at_step, newest_step(events[:started])) - first + 1)


def newest_step(events: Iterable[Event]) -> int:
    """Return the newest step that the driver has reported, 0 if none."""
    return max((event.step for event in events if isinstance(event, Progress)), default=0)


def schedule_faults(
    count: int, seed: int, steps: int, kinds: Sequence[FaultKind] = FAULT_KINDS
) -> list[ScheduledFault]:
    """Return `count` faults spread over `steps` steps, with every kind used once before any repeats."""
    rng = random.Random(seed)
    drawn: list[FaultKind] = []
    while len(drawn) < count:
        drawn += rng.sample(kinds, len(kinds))
    span = steps / (count + 1)
    return [
        ScheduledFault(kind, max(1, round(span * (n + 0.5 + rng.random() / 2))))
        for n, kind in enumerate(drawn[:count])
    ]


@dataclass(frozen=True)
class ChaosReport:
    """Injected faults, their outcomes and what was lost."""

    outcomes: Sequence[FaultOutcome]
    store_faults: Mapping[str, int]
    """Number of failed requests to the store by kind of fault."""
    tracking_faults: int
    """Number of failed requests to MLflow."""
    proof: Proof
    untracked_steps: int
    """Number of steps without metrics in MLflow."""

    @property
    def holds(self) -> bool:
        """Whether training recovered from every fault and nothing was lost."""
        return (
            self.proof.holds
            and not self.untracked_steps
            and all(s.seconds is not None for s in self.outcomes)
        )

    def render(self) -> str:
        """Return the report as text."""
        rows = list[tuple[str, ...]]()
        done = Counter(s.fault.kind for s in self.outcomes)
        for kind in FAULT_KINDS:
            if done[kind]:
                of_kind = [s for s in self.outcomes if s.fault.kind == kind]
                took = [s.seconds for s in of_kind if s.seconds is not None]
                after = ", ".join(f"{seconds:.0f} s" for seconds in took) or "never"
                again = ", ".join(str(s.repeated) for s in of_kind) if kind in KILL_KINDS else "-"
                rows.append((kind, str(done[kind]), str(len(took)), after, again))
        head = ("fault", "injected", "survived", "recovery time", "repeated steps")
        faults = ", ".join(f"{count} x {what}" for what, count in sorted(self.store_faults.items())) or "none"
        return "\n".join(
            [
                *aligned(head, rows),
                "",
                f"failed requests to the store     {faults}",
                f"failed requests to MLflow        {self.tracking_faults}",
                f"steps without metrics in MLflow  {self.untracked_steps}",
                self.proof.render().rpartition("\n")[0],
                "NOTHING WAS LOST" if self.holds else "SOMETHING WAS LOST",
            ]
        )
