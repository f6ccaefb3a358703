"""Locate the folder of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.identity import run_id
from orchestrator.config.schema import Job
from orchestrator.paths import below, home
from shards.dataset import Dataset
from shards.store import Store, open_store

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class RunLocation:
    """Where the parts of one run are."""

    run_id: str
    uri: str
    """The run's folder in the store."""
    folder: Path
    """Pictures and report on this machine."""

    @property
    def store(self) -> Store:
        """The run's folder, opened."""
        return open_store(self.uri)


def locate_run(job: Job, dataset: Dataset) -> RunLocation:
    """Return where the run of `job` on this data is."""
    name = run_id(job, dataset.digests)
    return RunLocation(name, f"{below(job.storage, 'runs')}/{name}", home() / "runs" / name)
