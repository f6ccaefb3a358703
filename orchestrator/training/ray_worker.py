"""Run one worker of a Ray Train group."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from orchestrator.config.job_types import JobOutcome
from orchestrator.errors import OrchestratorError
from orchestrator.training.assignment import WorkerAssignment
from orchestrator.training.driver import Driver
from orchestrator.training.engines.ddp import timed_out_waiting
from orchestrator.training.engines.factory import engine_for
from orchestrator.training.fault_injection import FaultInjectingDriver, KillSchedule
from orchestrator.training.ray_driver_relay import DriverLogHandler, RemoteDriver
from orchestrator.training.ray_session import RaySession, reported_checkpoint
from shards.errors import ShardsError, UnreachableStoreError

log = logging.getLogger(__name__)

_PACKAGES = ("orchestrator", "shards", "mirage")


def run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Take part in a run as one worker; return its `JobOutcome` as a mapping."""
    assignment, relay = WorkerAssignment(**config["assignment"]), config["relay"]
    if ray.get(relay.failure.remote()):
        # The previous attempt failed for a reason that a restart cannot fix.
        return asdict(JobOutcome("failed", 0, 0))
    job = assignment.resolved_job()
    os.environ["MIRAGE_HOME"] = assignment.home
    # The number of threads changes the order of sums, and so the last bit: the job sets it, not the machine.
    torch.set_num_threads(max(1, int(job.workers.cpus)))
    context = ray.train.get_context()
    rank = context.get_world_rank()
    session = RaySession(assignment.run_uri)
    driver = RemoteDriver(relay, rank, job.checkpoint.every_steps, session)
    handler = DriverLogHandler(driver)
    node = ray.get_runtime_context().get_node_id()
    group = ray.get(relay.join.remote(rank, context.get_world_size(), node))
    run_driver: Driver = driver
    if assignment.kill_schedule is not None:
        run_driver = FaultInjectingDriver(driver, KillSchedule(**assignment.kill_schedule), rank, group)
    for package in _PACKAGES:
        if rank == 0:
            logging.getLogger(package).addHandler(handler)
    timed_out = False
    try:
        if rank == 0:
            _compare_with_ray(assignment)
        outcome = assignment.train(job, engine_for(job, ray.train.torch.get_device()), run_driver, group)
        session.finish()
    except UnreachableStoreError:
        raise  # the store may be reachable again when Ray restarts the group
    except (OrchestratorError, ShardsError) as error:
        ray.get(relay.fail.remote(str(error), group))
        raise
    except Exception as error:
        timed_out = timed_out_waiting(error)
        raise
    finally:
        driver.flush()
        ray.get(relay.leave.remote(rank, group, timed_out))
        for package in _PACKAGES:
            logging.getLogger(package).removeHandler(handler)
    return asdict(outcome)


def _compare_with_ray(assignment: WorkerAssignment) -> None:
    """Warn if the store lost the checkpoint that Ray Train would resume from.

    The run resumes from the newest valid checkpoint in the store, whatever Ray Train was told of: it may have been told
    of an older one, or of none by an earlier submission.
    """
    reported = reported_checkpoint()
    if reported > assignment.newest_checkpoint():
        log.warning("checkpoint %s is not in %s any more; steps are repeated", reported, assignment.run_uri)
