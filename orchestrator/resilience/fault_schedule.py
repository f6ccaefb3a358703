"""What `mirage chaos` does to a run, and how it tells what came of it; how it is done is in `cluster.harm`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from orchestrator.events import Event, Progress, Resumed, WorkersStarted
from orchestrator.resilience.resume_proof import Proof

FaultKind = Literal["worker killed", "driver killed", "node lost", "store faulty", "tracking away"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
KILL_KINDS: tuple[FaultKind, ...] = ("worker killed", "driver killed", "node lost")
"""After these other workers go on, from a checkpoint."""


@dataclass(frozen=True)
class ScheduledFault:
    """One thing that is done to the run once it has reached a step."""

    kind: FaultKind
    step: int


@dataclass(frozen=True)
class FaultOutcome:
    """What came of a fault."""

    fault: ScheduledFault
    at_step: int
    """The newest step that the driver had told when it fell."""
    seconds: float | None
    """Until the next step was told, after a kill by other workers; None if none was, or the fault reached nobody."""
    repeated: int = 0
    """Steps that were computed again."""


def repeated_steps(events: Sequence[Event], at_step: int) -> int | None:
    """Return how many steps other workers repeat after a kill, None before they have taken one.

    `events`: those since the kill. `at_step`: the newest step before it.
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
    """Return `count` blows within `steps` steps: every kind once before any comes again, evenly spread."""
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
    """What was done, what was survived, and what was lost."""

    outcomes: Sequence[FaultOutcome]
    store_faults: Mapping[str, int]
    """Requests to the store that met a fault, by its kind."""
    tracking_faults: int
    """Requests to MLflow that nobody answered."""
    proof: Proof
    untracked_steps: int
    """Steps whose numbers are not in MLflow."""

    @property
    def holds(self) -> bool:
        """Whether everything was survived and nothing was lost."""
        return (
            self.proof.holds
            and not self.untracked_steps
            and all(s.seconds is not None for s in self.outcomes)
        )

    def render(self) -> str:
        """Return the table."""
        rows = [("fault", "injected", "survived", "training again after", "steps again")]
        done = Counter(s.fault.kind for s in self.outcomes)
        for kind in FAULT_KINDS:
            if done[kind]:
                of_kind = [s for s in self.outcomes if s.fault.kind == kind]
                took = [s.seconds for s in of_kind if s.seconds is not None]
                after = ", ".join(f"{seconds:.0f} s" for seconds in took) or "never"
                again = ", ".join(str(s.repeated) for s in of_kind) if kind in KILL_KINDS else "-"
                rows.append((kind, str(done[kind]), str(len(took)), after, again))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        table = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        faults = ", ".join(f"{count} x {what}" for what, count in sorted(self.store_faults.items())) or "none"
        return "\n".join(
            [
                *table,
                "",
                f"requests to the store that failed     {faults}",
                f"requests to MLflow that failed        {self.tracking_faults}",
                f"steps whose numbers MLflow lacks      {self.untracked_steps}",
                self.proof.render().rpartition("\n")[0],
                "NOTHING WAS LOST" if self.holds else "SOMETHING WAS LOST",
            ]
        )
