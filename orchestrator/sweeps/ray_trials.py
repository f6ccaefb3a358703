"""Trials of a sweep on the connected cluster: each a Ray Train run with workers of its own.

All trials are launched by the sweep's driver, in threads: no process stands between it and a trial's workers, so none
can hold a CPU that the workers need. As many run at a time as the cluster can hold whole.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import ray

from orchestrator.cluster.capacity import fitting_workers, shortage
from orchestrator.cluster.placement_groups import leaked_groups
from orchestrator.cluster.ray_internals_autoscaler import is_autoscaling, max_cluster_resources
from orchestrator.config.schema import Job, Workers
from orchestrator.console import Echo
from orchestrator.errors import PlanError
from orchestrator.training.assignment import worker_assignment as assignment_of
from orchestrator.training.driver import Driver, JobOutcome
from orchestrator.training.ray_launcher import launch
from orchestrator.training.run_location import RunLocation as Place
from shards.dataset import Dataset

_NO_LIMIT = 10**9


def train_on_cluster(
    job: Job, dataset: Dataset, place: Place, driver: Driver, asked: threading.Event
) -> JobOutcome:
    """Train a trial with workers of its own until its end or until `asked` is set; they are freed with it."""
    return launch(job, assignment_of(job, dataset, place), driver, asked)


def room(workers: Workers, at_most: int | None, say: Echo) -> int:
    """Return how many trials the cluster holds at a time. Raises PlanError when it is not even one.

    On a cluster that autoscales without a known limit, it is `at_most`, or else as many as fit now, at
    least one.
    """
    most = max_cluster_resources()
    nodes = [most] if most else [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if most is None and is_autoscaling():
        many = at_most or max(1, concurrency(workers, nodes))
        say(
            f"trials at a time: {many}"
            + ("" if at_most else "; the cluster grows, sweep.max_concurrent says how far")
        )
        return many
    if too_small := shortage(workers, nodes):
        raise PlanError(too_small)
    return concurrency(workers, nodes)


def concurrency(workers: Workers, nodes: Iterable[Mapping[str, float]]) -> int:
    """Return how many trials of `workers.min` workers fit on `nodes` together; a worker never spans two nodes."""
    return fitting_workers(workers.model_copy(update={"max": _NO_LIMIT}), nodes) // workers.min


def explain(workers: Workers) -> str:
    """Return what a trial needs, what is free, and who may hold the rest."""
    whole, free = ray.cluster_resources(), ray.available_resources()
    leaked = leaked_groups()
    held = f" {len(leaked)} placement groups belong to jobs that have ended." if leaked else ""
    return (
        f"A trial needs {workers.min} x ({workers.cpus:g} CPU, {workers.gpus:g} GPU); the cluster has "
        f"{whole.get('CPU', 0):g} CPU and {whole.get('GPU', 0):g} GPU, of which {free.get('CPU', 0):g} and "
        f"{free.get('GPU', 0):g} are free.{held} See what holds the rest: ray status"
    )
