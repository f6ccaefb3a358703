"""Describe what a training worker needs to open its run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.config.job_types import JobOutcome
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.masking import masked
from orchestrator.paths import home
from orchestrator.training.checkpoint import RECORD_KEY
from orchestrator.training.driver import Driver
from orchestrator.training.engines.base import Engine
from orchestrator.training.fencing import Turn
from orchestrator.training.loop import train
from orchestrator.training.run_location import RunLocation
from orchestrator.version import code_version
from shards.dataset import Dataset
from shards.store import open_store


@dataclass(frozen=True)
class WorkerAssignment:
    """The input of a worker: plain data, so that it can be pickled."""

    job: dict[str, Any]
    """Without passwords: Ray's state API shows it."""
    manifests: tuple[str, ...]
    digests: tuple[str, ...]
    """Digests of the manifests: restarted workers read the same data even if it was packed again."""
    run_uri: str
    code_version: str
    home: str
    owner: int = 0
    """Number of the driver's claim on the run; 0 if it has none, as proofs and trials."""
    launch: int = 0
    """Calls of Ray Train by the driver so far."""
    kill_schedule: dict[str, Any] | None = None
    """Fields of a `KillSchedule`; only proofs set it."""

    def resolved_job(self) -> Job:
        """Return the job to train."""
        job = job_from_mapping(self.job)
        assert isinstance(job, Job), "only training jobs have workers"
        return job

    def newest_checkpoint(self) -> str:
        """Return the name of the run's newest checkpoint, verified or not, or ""; if it changes, the run progresses."""
        found = map(RECORD_KEY.fullmatch, open_store(self.run_uri).list("checkpoints/"))
        return max((match[1] for match in found if match), default="")

    def train(self, job: Job, engine: Engine, driver: Driver, group: int = 0) -> JobOutcome:
        """Take part in the run of `job`, the resolved one, until it ends or the driver stops it.

        `group`: number of the group of workers within a call of Ray Train.
        """
        turn = Turn(self.owner, self.launch, group) if self.owner else None
        dataset = datasets.open_dataset_at(self.manifests, self.digests, job.data)
        return train(job, dataset, open_store(self.run_uri), engine, driver, self.code_version, turn)


def worker_assignment(job: Job, dataset: Dataset, location: RunLocation, owner: int = 0) -> WorkerAssignment:
    """Return the assignment of a run; all its workers get the same one.

    `owner`: number of the driver's claim on the run, if it has one.
    """
    content = job.model_dump(mode="json")
    content["track"] = masked(content["track"])
    return WorkerAssignment(
        job=content,
        manifests=datasets.manifest_uris(job),
        digests=tuple(dataset.digests),
        run_uri=location.uri,
        code_version=code_version(),
        home=str(home()),
        owner=owner,
    )
