"""How many groups of workers, such as the trials of a sweep, fit a Ray cluster at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ray

from orchestrator.cluster.capacity import fitting_workers, shortage
from orchestrator.cluster.placement_groups import leaked_groups
from orchestrator.cluster.ray_internals_autoscaler import is_autoscaling, max_cluster_resources
from orchestrator.config.schema import Workers
from orchestrator.errors import PlanError


def concurrent_groups(workers: Workers, at_most: int | None) -> int:
    """Return how many groups of `workers.min` run at the same time. Raises PlanError if not even one fits.

    On an autoscaling cluster of unknown size it is `at_most`, else what fits now, at least one.
    """
    most = max_cluster_resources()
    nodes = [most] if most else [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if most is None and is_autoscaling():
        return at_most or max(1, fitting_groups(workers, nodes))
    if too_small := shortage(workers, nodes):
        raise PlanError(too_small)
    fitting = fitting_groups(workers, nodes)
    return min(fitting, at_most or fitting)


def fitting_groups(workers: Workers, nodes: Iterable[Mapping[str, float]]) -> int:
    """Return how many groups of `workers.min` fit on `nodes` together; a worker never spans two nodes."""
    return fitting_workers(workers.model_copy(update={"max": 10**9}), nodes) // workers.min


def describe_capacity(workers: Workers) -> str:
    """Return what a group needs, what the cluster has free, and what may hold the rest."""
    total, free = ray.cluster_resources(), ray.available_resources()
    leaked = leaked_groups()
    held = f" {len(leaked)} placement groups belong to jobs that have ended." if leaked else ""
    return (
        f"Needed: {workers.min} x ({workers.cpus:g} CPU, {workers.gpus:g} GPU); the cluster has "
        f"{total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU, of which {free.get('CPU', 0):g} and "
        f"{free.get('GPU', 0):g} are free.{held} See what holds the rest: ray status"
    )
