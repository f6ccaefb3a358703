"""Whether a cluster can hold a job: refused at once when it never can, waited for when it cannot yet."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray
import ray._private.state
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

from orchestrator.cluster.node_requests import Asking
from orchestrator.config.schema import WorkerResources
from orchestrator.errors import PlanError

_POLL_SECONDS = 1.0
_TOGETHER_SECONDS = 10.0
"""Nodes that were asked for at a time come within so many seconds of each other, or else later."""
# CPUs and GPUs come back as floats that sums have rounded.
_SLACK = 1e-6

Resources = Mapping[str, float]


def fitting_workers(workers: WorkerResources, nodes: Iterable[Resources]) -> int:
    """Return how many workers fit on `nodes`, at most `workers.max`; a worker never spans two nodes."""
    return min(workers.max, sum(_fitting_on(workers, node) for node in nodes))


def _fitting_on(workers: WorkerResources, resources: Resources) -> int:
    fits = (resources.get("CPU", 0.0) + _SLACK) / workers.cpus
    if workers.gpus:
        fits = min(fits, (resources.get("GPU", 0.0) + _SLACK) / workers.gpus)
    return math.floor(fits)


def refusal(workers: WorkerResources, nodes: Sequence[Resources]) -> str:
    """Return the arithmetic of why the whole cluster is too small, or "" when it is not."""
    if fitting_workers(workers, nodes) >= workers.min:
        return ""
    need = f"{workers.min} x {workers.cpus:g} CPU = {workers.min * workers.cpus:g} CPU"
    have = _sum(nodes, "CPU")
    if workers.gpus:
        need += f" and {workers.min} x {workers.gpus:g} GPU = {workers.min * workers.gpus:g} GPU"
        have += f" and {_sum(nodes, 'GPU')}"
    return (
        f"the job needs {need}, each worker on one node, and the whole cluster has {have}. "
        f"Lower workers.min, workers.cpus or workers.gpus, or use a larger cluster."
    )


def _sum(nodes: Sequence[Resources], kind: str) -> str:
    each = [node.get(kind, 0.0) for node in nodes]
    total = f"{sum(each):g} {kind}"
    return total if len(each) == 1 else f"{total} on {len(each)} nodes ({', '.join(f'{n:g}' for n in each)})"


def nodes_that_go() -> dict[str, float]:
    """Return the nodes that are being drained, such as after a cloud's notice: id -> when they go, Unix time.

    The time is 0 where nobody said when.
    """
    draining: Mapping[str, int] = ray._private.state.state.get_draining_nodes()
    return {node: milliseconds / 1000 for node, milliseconds in draining.items()}


def free_room(going: Iterable[str] = ()) -> list[Resources]:
    """Return what is free on each node that stays."""
    free: Mapping[str, Resources] = ray._private.state.available_resources_per_node()
    return [resources for node, resources in free.items() if node not in set(going)]


def grows() -> bool:
    """Return whether an autoscaler may add nodes to this cluster when somebody asks for what it has not got.

    KubeRay's clusters look as if, also where their autoscaler is switched off.
    """
    if largest_cluster() is not None or is_autoscaler_v2(fetch_from_server=True):
        return True
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)  # of the older autoscaler
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    # Where nodes are started by hand a monitor reports too, and calls each node a type of its own.
    kinds = report.get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in kinds.items())


def largest_cluster() -> Resources | None:
    """Return what a cluster that grows can hold at most, None where nobody says so: Ray's own autoscalers do not."""
    most: Resources | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return most or None


def wait_for_room(
    workers: WorkerResources,
    say: Callable[[str], None],
    stopping: Callable[[], bool],
    *,
    known_to_fit: bool = False,
) -> int:
    """Return how many workers to start, once the cluster has room for at least `workers.min`; 0 when `stopping`.

    A cluster that grows is asked for `workers.max`. Raises PlanError when the cluster can never hold the job, which is
    not asked where that is `known_to_fit` once nodes are back or where a cluster grows and nobody says how far, or when
    `workers.startup_timeout_seconds` are over.
    """
    most, now = largest_cluster(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    growing = grows()
    if (
        not known_to_fit
        and (most or not growing)
        and (too_small := refusal(workers, [most] if most else now))
    ):
        raise PlanError(too_small)
    if growing:
        return _wait_for_nodes(workers, say, stopping)
    deadline = time.monotonic() + workers.startup_timeout_seconds
    waiting = False
    while not stopping():
        nodes = free_room(nodes_that_go())
        fits = fitting_workers(workers, nodes)
        if fits >= workers.min:
            return fits
        free = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        if time.monotonic() > deadline:
            raise PlanError(
                f"after workers.startup_timeout_seconds ({workers.startup_timeout_seconds:g} s) the cluster still "
                f"has only {free['CPU']:g} CPU and {free['GPU']:g} GPU free. "
                "See what holds the rest: ray status"
            )
        if not waiting:
            say(
                f"waiting for room: {workers.min} x ({workers.cpus:g} CPU, {workers.gpus:g} GPU) are needed, "
                f"{free['CPU']:g} CPU and {free['GPU']:g} GPU are free"
            )
            waiting = True
        time.sleep(_POLL_SECONDS)
    return 0


def _wait_for_nodes(
    workers: WorkerResources, say: Callable[[str], None], stopping: Callable[[], bool]
) -> int:
    """Ask for `workers.max` and return how many there is room for, once it is `min` and no more come at a time."""
    asking = Asking(workers)
    asking.ask(workers.max)
    each = f"({workers.cpus:g} CPU, {workers.gpus:g} GPU)"
    began = newest = time.monotonic()
    come, told = 0, False
    try:
        while not stopping():
            time.sleep(_POLL_SECONDS)
            before, come = come, asking.come(nodes_that_go())
            newest = time.monotonic() if come > before else newest
            alone = time.monotonic() - newest > _TOGETHER_SECONDS
            if come == workers.max or (come >= workers.min and alone):
                return come
            if time.monotonic() - began > workers.startup_timeout_seconds:
                raise PlanError(
                    f"after workers.startup_timeout_seconds ({workers.startup_timeout_seconds:g} s) "
                    "the cluster, which adds nodes on demand, "
                    f"has room for {come} of at least {workers.min} x {each}. See what it waits for: ray status. "
                    "Submit the job again to go on."
                )
            if not told:
                say(
                    f"waiting for nodes: {workers.min} to {workers.max} x {each} are asked for, {come} have come"
                )
                told = True
    finally:
        asking.release()
    return 0
