"""Locate the folder of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.identity import run_id
from orchestrator.config.schema import Job
from orchestrator.paths import below, home
from shards.dataset import Dataset
from shards.store import Store, open_store


@dataclass(frozen=True)
class RunLocation:
    """The id and folders of a run."""

    run_id: str
    uri: str
    """The run's folder in the store."""
    folder: Path
    """Folder on this machine for images and the report."""

    @property
    def store(self) -> Store:
        """Return the run's folder as a store."""
        return open_store(self.uri)


def locate_run(job: Job, dataset: Dataset) -> RunLocation:
    """Return the location of the run of `job` on this data."""
    name = run_id(job, dataset.digests)
    return RunLocation(name, f"{below(job.storage, 'runs')}/{name}", home() / "runs" / name)
