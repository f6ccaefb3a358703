"""The kinds of job, the schema of each, and how a job ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config import conflicts
from orchestrator.config.conflicts import Conflict
from orchestrator.config.job_schemas import EvaluateJob, PackJob, RestoreJob
from orchestrator.config.presets import RECIPES, SETTINGS, defaults
from orchestrator.config.schema import Job
from orchestrator.config.sweep_conflicts import sweep_conflicts
from orchestrator.config.sweep_schema import SweepJob

DEFAULT_KIND = "train"
"""Kind of a file without the key `kind`."""

AnyJob = Job | PackJob | EvaluateJob | RestoreJob | SweepJob


@dataclass(frozen=True)
class JobKind:
    """A kind of job, as far as its file is concerned."""

    model: type[Any]
    """Schema."""
    required: tuple[str, ...]
    """Keys that the file must have."""
    conflicts: Callable[[Any], Iterator[Conflict]]
    """Yields the impossible combinations of a job."""
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: {}
    """Returns the keys that the recipe and the setting of a file set."""


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended."""

    status: str
    """`finished`; `stopped` or `restarting`, with its progress saved; `failed`."""
    step: int
    """Training steps, or images, that are done."""
    total_steps: int


def _training_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    recipe, setting, train = given.get("recipe", "authors"), given.get("setting"), given.get("train")
    length_given = isinstance(train, Mapping) and any(
        train.get(key) is not None for key in ("steps", "epochs")
    )
    if isinstance(recipe, str) and recipe in RECIPES and isinstance(setting, str) and setting in SETTINGS:
        found = defaults(recipe, setting, length_given=length_given)
        model = given.get("model")
        if isinstance(model, Mapping) and model.get("class") is not None:
            found["loss"]["spd_weight"] = 0.0  # the SPD term needs a MIRAGE
        return found
    return {}


KINDS: dict[str, JobKind] = {
    "train": JobKind(
        Job, ("name", "setting", "data", "track"), conflicts.training_conflicts, _training_defaults
    ),
    "pack": JobKind(PackJob, ("name", "data"), conflicts.packing_conflicts),
    "evaluate": JobKind(EvaluateJob, ("name", "model", "data", "track"), conflicts.evaluation_conflicts),
    "restore": JobKind(RestoreJob, ("name", "restore"), conflicts.restore_conflicts),
    "sweep": JobKind(
        SweepJob, ("name", "setting", "data", "track", "sweep"), sweep_conflicts, _training_defaults
    ),
}
