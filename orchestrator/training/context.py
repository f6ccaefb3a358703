"""Define the context of a run in its driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.config.schema import Job
from orchestrator.planning.plan import Plan
from orchestrator.training.run_location import RunLocation
from shards.dataset import Dataset


@dataclass(frozen=True)
class RunContext:
    """A run of a training job; built once per submission."""

    job: Job
    dataset: Dataset
    plan: Plan
    location: RunLocation
    tracking_uri: str
    tracking_id: str
    """Id of the run in MLflow."""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """MLflow tags for the origin of the run, for example its sweep."""
