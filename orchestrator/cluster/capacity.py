"""Capacity of a Ray cluster for a job's workers: refuse what can never fit, wait for what does not fit yet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray

from orchestrator.cluster.node_requests import NodeRequest
from orchestrator.cluster.ray_internals_autoscaler import is_autoscaling, max_cluster_resources
from orchestrator.cluster.ray_internals_nodes import available_resources_per_node, draining_nodes
from orchestrator.config.schema import WorkerResources
from orchestrator.errors import PlanError

_POLL_SECONDS = 1.0
_SETTLE_SECONDS = 10.0
"""Start with fewer than `workers.max` once no new node has come for this long."""
# Resource amounts are floats with rounding errors.
_TOLERANCE = 1e-6

Resources = Mapping[str, float]


def fitting_workers(workers: WorkerResources, nodes: Iterable[Resources]) -> int:
    """Return how many workers fit on `nodes`, at most `workers.max`; a worker never spans two nodes."""
    return min(workers.max, sum(_fitting_on(workers, node) for node in nodes))


def _fitting_on(workers: WorkerResources, resources: Resources) -> int:
    fits = (resources.get("CPU", 0.0) + _TOLERANCE) / workers.cpus
    if workers.gpus:
        fits = min(fits, (resources.get("GPU", 0.0) + _TOLERANCE) / workers.gpus)
    return math.floor(fits)


def shortage(workers: WorkerResources, nodes: Sequence[Resources]) -> str:
    """Return why `nodes` together are too small for `workers.min`, with the arithmetic; "" if they are not."""
    if fitting_workers(workers, nodes) >= workers.min:
        return ""
    need = f"{workers.min} x {workers.cpus:g} CPU = {workers.min * workers.cpus:g} CPU"
    have = _total(nodes, "CPU")
    if workers.gpus:
        need += f" and {workers.min} x {workers.gpus:g} GPU = {workers.min * workers.gpus:g} GPU"
        have += f" and {_total(nodes, 'GPU')}"
    return (
        f"the job needs {need}, each worker on one node, and the whole cluster has {have}. "
        f"Lower workers.min, workers.cpus or workers.gpus, or use a larger cluster."
    )


def _total(nodes: Sequence[Resources], kind: str) -> str:
    each = [node.get(kind, 0.0) for node in nodes]
    total = f"{sum(each):g} {kind}"
    return total if len(each) == 1 else f"{total} on {len(each)} nodes ({', '.join(f'{n:g}' for n in each)})"


def free_resources(draining: Iterable[str] = ()) -> list[Resources]:
    """Return the free resources of each node that is not in `draining`."""
    excluded = set(draining)
    return [free for node, free in available_resources_per_node().items() if node not in excluded]


def wait_for_capacity(
    workers: WorkerResources,
    log: Callable[[str], None],
    stopping: Callable[[], bool],
    *,
    known_to_fit: bool = False,
) -> int:
    """Wait until at least `workers.min` fit and return how many workers to start; 0 when `stopping`.

    An autoscaling cluster is asked for `workers.max`. Raises PlanError after `workers.startup_timeout_seconds`, or
    at once when the cluster can never hold the job; that is not checked if `known_to_fit`, nor on an autoscaling
    cluster without a known limit.
    """
    limits, alive = max_cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    autoscaling = is_autoscaling()
    if (
        not known_to_fit
        and (limits or not autoscaling)
        and (too_small := shortage(workers, [limits] if limits else alive))
    ):
        raise PlanError(too_small)
    if autoscaling:
        return _wait_for_nodes(workers, log, stopping)
    deadline = time.monotonic() + workers.startup_timeout_seconds
    logged = False
    while not stopping():
        nodes = free_resources(draining_nodes())
        fits = fitting_workers(workers, nodes)
        if fits >= workers.min:
            return fits
        free = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        if time.monotonic() > deadline:
            raise PlanError(
                f"after workers.startup_timeout_seconds ({workers.startup_timeout_seconds:g} s) the cluster still "
                f"has only {free['CPU']:g} CPU and {free['GPU']:g} GPU free. "
                "To see what uses the rest: ray status"
            )
        if not logged:
            log(
                f"waiting for resources: {workers.min} x ({workers.cpus:g} CPU, {workers.gpus:g} GPU) needed, "
                f"{free['CPU']:g} CPU and {free['GPU']:g} GPU free"
            )
            logged = True
        time.sleep(_POLL_SECONDS)
    return 0


def _wait_for_nodes(
    workers: WorkerResources, log: Callable[[str], None], stopping: Callable[[], bool]
) -> int:
    """Request `workers.max`; return how many fit once it is all, or at least `min` and no new node has come lately."""
    nodes = NodeRequest(workers)
    nodes.request(workers.max)
    each = f"({workers.cpus:g} CPU, {workers.gpus:g} GPU)"
    began = newest = time.monotonic()
    ready, logged = 0, False
    try:
        while not stopping():
            time.sleep(_POLL_SECONDS)
            before, ready = ready, nodes.ready(draining_nodes())
            newest = time.monotonic() if ready > before else newest
            settled = time.monotonic() - newest > _SETTLE_SECONDS
            if ready == workers.max or (ready >= workers.min and settled):
                return ready
            if time.monotonic() - began > workers.startup_timeout_seconds:
                raise PlanError(
                    f"after workers.startup_timeout_seconds ({workers.startup_timeout_seconds:g} s) "
                    f"the autoscaling cluster has resources for {ready} of at least {workers.min} x {each}. "
                    "See `ray status`. Submit the job again to continue."
                )
            if not logged:
                log(f"waiting for nodes: requested {workers.min} to {workers.max} x {each}, {ready} ready")
                logged = True
    finally:
        nodes.release()
    return 0
