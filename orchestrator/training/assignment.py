"""Describe what a training worker needs to open its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.paths import home
from orchestrator.training.run_location import RunLocation
from orchestrator.version import code_version
from shards.dataset import Dataset


@dataclass(frozen=True)
class WorkerAssignment:
    """What a worker needs to know besides the job: plain data, so that it pickles."""

    job: dict[str, Any]
    manifests: tuple[str, ...]
    digests: tuple[str, ...]
    """Which data it is: restarted workers read this, whatever was packed meanwhile."""
    run_uri: str
    code_version: str
    home: str
    kill_schedule: dict[str, Any] | None = None
    """The fields of a `KillSchedule`, in a proof."""


def worker_assignment(job: Job, dataset: Dataset, location: RunLocation) -> WorkerAssignment:
    """Return what the workers of a run need to know."""
    return WorkerAssignment(
        job=job.model_dump(mode="json"),
        manifests=datasets.manifest_uris(job),
        digests=tuple(dataset.digests),
        run_uri=location.uri,
        code_version=code_version(),
        home=str(home()),
    )
