"""Define the events that workers, drivers and their consumers exchange.

A worker emits an event; the driver passes it on. `orchestrator.console` renders events as text or JSON, MLflow tracks
those with metrics, and chaos, proofs and sweeps act on them. Nothing parses the rendered text, so its wording is free.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Event:
    """Base class of events; each subclass is registered under its name in snake case."""

    types: ClassVar[dict[str, type[Event]]] = {}
    kind: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        Event.types[cls.kind] = cls


Emit = Callable[[Event], None]


@dataclass(frozen=True)
class LogMessage(Event):
    """Text for people; no consumer acts on it."""

    text: str
    level: Literal["info", "warning", "error", "critical"] = "info"


# --- a run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunStarted(Event):
    """The driver has opened the run."""

    run_id: str
    resumed: bool
    """Whether an earlier submission of the job started it."""


@dataclass(frozen=True)
class RunAlreadyFinished(Event):
    """The job was submitted again after its run had finished."""

    run_id: str


@dataclass(frozen=True)
class RunStopped(Event):
    """The run stopped before its end; submitting the job again resumes it."""

    step: int
    """Step of the checkpoint; 0: it stopped before the first step."""


@dataclass(frozen=True)
class ModelRegistered(Event):
    """The run's model is in the registry."""

    name: str
    version: str
    uri: str

    @property
    def words(self) -> str:
        """Return the version as words for people."""
        return f"{self.name} version {self.version}, {self.uri}"


@dataclass(frozen=True)
class RunFinished(Event):
    """The run is trained, evaluated and registered."""

    run_id: str
    files: Mapping[str, str]
    """File name -> path on this machine."""
    tracking: str
    """Where to see the run in MLflow: a URL or a command."""


# --- workers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkersStarting(Event):
    """A worker group was requested."""

    workers: int


@dataclass(frozen=True)
class WorkersStarted(Event):
    """All workers of a group are running."""

    workers: int


@dataclass(frozen=True)
class WorkersLost(Event):
    """Nodes with workers disappeared."""

    nodes: tuple[str, ...]
    ranks: tuple[int, ...]
    waiting_for: str
    """Resources that the next group needs, as text."""


@dataclass(frozen=True)
class RestartRequested(Event):
    """Base class: the workers will write a checkpoint and exit; another group replaces them."""


@dataclass(frozen=True)
class NodesDraining(RestartRequested):
    """Nodes with workers are draining."""

    nodes: tuple[str, ...]
    ranks: tuple[int, ...]
    seconds_left: float | None
    """Time until the first one leaves, if known."""


@dataclass(frozen=True)
class CapacityAvailable(RestartRequested):
    """The cluster has had capacity for more workers for `scale_up_delay_seconds`."""

    more_workers: int


@dataclass(frozen=True)
class WorkerTerminated(RestartRequested):
    """A worker received SIGTERM."""

    rank: int


@dataclass(frozen=True)
class StopRequested(Event):
    """The workers will write a checkpoint and exit."""

    reason: str = ""
    """Empty: the user asked for it."""


@dataclass(frozen=True)
class WorkersRestarting(Event):
    """Another group of workers resumes from the checkpoint that this one wrote."""

    step: int


@dataclass(frozen=True)
class WorkersReplaced(Event):
    """Workers died or failed; Ray Train starts the group again."""

    ranks: tuple[int, ...]
    reason: str
    """Of the first one."""


@dataclass(frozen=True)
class WorkersHung(Event):
    """Workers did not answer the others, which ended for that reason; another group replaces them."""

    ranks: tuple[int, ...]
    nodes: tuple[str, ...]
    """Of each rank."""


@dataclass(frozen=True)
class WorkersFailed(Event):
    """Workers died too often, but the run made progress, so another group is started."""

    error: str


@dataclass(frozen=True)
class WorkerKilled(Event):
    """Fault injection is about to kill this worker."""

    rank: int
    step: int


# --- training --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resumed(Event):
    """Training resumed from a checkpoint."""

    checkpoint: str
    step: int


@dataclass(frozen=True)
class CheckpointWritten(Event):
    """A checkpoint is complete in the store, and those that no rule keeps are deleted."""

    step: int
    checkpoint: str
    """Name of the checkpoint."""
    kept: Mapping[str, Mapping[str, float]]
    """Validation metrics of each checkpoint in the store, by name."""


@dataclass(frozen=True)
class ProfileWritten(Event):
    """A trace of the profiler is in the store."""

    uri: str


@dataclass(frozen=True)
class Measured(Event):
    """Base class of events with metrics to track; each metric's name contains a slash."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Metrics(Measured):
    """Metrics with no other meaning, for example of the node."""


@dataclass(frozen=True)
class Progress(Measured):
    """Means over the steps since the previous `Progress`."""

    total_steps: int
    seconds_left: float
    """Estimate of the remaining training time."""


@dataclass(frozen=True)
class Validation(Measured):
    """Scores on held-out photographs."""

    psnr: Mapping[str, float]
    """Degradation -> PSNR in dB."""
    gain: Mapping[str, float]
    """Degradation -> PSNR minus that of the degraded photographs, in dB."""


@dataclass(frozen=True)
class Image(Event):
    """A PNG to track."""

    name: str
    png: bytes
    step: int


# --- serialisation ---------------------------------------------------------------------------------------------


def to_dict(event: Event) -> dict[str, Any]:
    """Return the event as values that JSON can hold: its kind, its fields, and each metric under its own name.

    A metric that is not finite becomes None. Raises TypeError for an `Image`.
    """
    if isinstance(event, Image):
        raise TypeError("images are not serialised")
    values: dict[str, Any] = {"event": event.kind}
    for field in fields(event):
        value = getattr(event, field.name)
        if field.name == "metrics":
            values |= {name: each if math.isfinite(each) else None for name, each in value.items()}
        else:
            values[field.name] = dict(value) if isinstance(value, Mapping) else value
    return values


def from_dict(values: Mapping[str, Any]) -> Event:
    """Return the event that `to_dict` serialised; other keys are ignored. Raises KeyError for an unknown kind."""
    kind = Event.types[values["event"]]
    arguments: dict[str, Any] = {}
    for field in fields(kind):
        if field.name == "metrics":
            metrics = {name: value for name, value in values.items() if "/" in name}
            arguments["metrics"] = {name: math.nan if v is None else v for name, v in metrics.items()}
        else:
            value = values[field.name]
            arguments[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def read_log(text: str) -> list[Event]:
    """Return the events of a JSON log, in their order; other lines, such as an incomplete last one, are ignored."""
    found = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and values.get("event") in Event.types:
            found.append(from_dict(values))
    return found
