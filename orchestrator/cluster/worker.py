"""One worker of a Ray Train group: it opens what the assignment names and takes part in `orchestrator.train`."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from orchestrator.cluster.mailbox import Distant, ToDriver
from orchestrator.config import Job
from orchestrator.engine import engine_for
from orchestrator.errors import OrchestratorError
from orchestrator.fate import Fate, Fated
from orchestrator.jobfile import job_from_mapping
from orchestrator.train import Driver, Outcome, train
from shards.errors import ShardsError, UnreachableStoreError
from shards.store import open_store

_PACKAGES = ("orchestrator", "shards", "mirage")


@dataclass(frozen=True)
class Assignment:
    """What a worker needs to know besides the job: plain data, so that it pickles."""

    job: dict[str, Any]
    manifests: tuple[str, ...]
    digests: tuple[str, ...]
    """Which data it is: restarted workers read this, whatever was packed meanwhile."""
    run_uri: str
    code_version: str
    home: str
    fate: dict[str, Any] | None = None
    """The fields of a `Fate`, in a proof."""


def work(config: dict[str, Any]) -> dict[str, Any]:
    """Take part in a run as one worker; return its `Outcome` as a mapping."""
    assignment, mailbox = Assignment(**config["assignment"]), config["mailbox"]
    if ray.get(mailbox.failure.remote()):
        # The attempt before failed for a reason that trying again does not cure.
        return asdict(Outcome("failed", 0, 0))
    from orchestrator import data

    job = job_from_mapping(assignment.job)
    assert isinstance(job, Job), "only training is launched here"
    os.environ["MIRAGE_HOME"] = assignment.home
    # The number of threads changes the order of sums, and with it the last bit: it is the job's, not the machine's.
    torch.set_num_threads(max(1, int(job.workers.cpus)))
    driver = Distant(mailbox)
    handler = ToDriver(driver)
    place = ray.train.get_context()
    rank = place.get_world_rank()
    node = ray.get_runtime_context().get_node_id()
    group = ray.get(mailbox.join.remote(rank, place.get_world_size(), node))
    told: Driver = driver if assignment.fate is None else Fated(driver, Fate(**assignment.fate), rank, group)
    for package in _PACKAGES:
        if rank == 0:
            logging.getLogger(package).addHandler(handler)
    try:
        device = ray.train.torch.get_device()
        engine = engine_for(job, device)
        dataset = data.open_dataset_at(assignment.manifests, assignment.digests, job.data)
        outcome = train(job, dataset, open_store(assignment.run_uri), engine, told, assignment.code_version)
    except UnreachableStoreError:
        raise  # the store may be back when Ray restarts the group
    except (OrchestratorError, ShardsError) as error:
        ray.get(mailbox.fail.remote(str(error)))
        raise
    finally:
        driver.flush()
        for package in _PACKAGES:
            logging.getLogger(package).removeHandler(handler)
    return asdict(outcome)
