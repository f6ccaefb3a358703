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

from orchestrator.config import Crew
from orchestrator.errors import PlanError

_POLL_SECONDS = 1.0
# CPUs and GPUs come back as floats that sums have rounded.
_SLACK = 1e-6

Resources = Mapping[str, float]


def fitting_workers(workers: Crew, nodes: Iterable[Resources]) -> int:
    """Return how many workers fit on `nodes`, at most `workers.max`; a worker never spans two nodes."""
    return min(workers.max, sum(_fitting_on(workers, node) for node in nodes))


def _fitting_on(workers: Crew, resources: Resources) -> int:
    fits = (resources.get("CPU", 0.0) + _SLACK) / workers.cpus
    if workers.gpus:
        fits = min(fits, (resources.get("GPU", 0.0) + _SLACK) / workers.gpus)
    return math.floor(fits)


def refusal(workers: Crew, nodes: Sequence[Resources]) -> str:
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
    """Return whether an autoscaler adds nodes to this cluster when somebody asks for what it has not got."""
    if is_autoscaler_v2():  # KubeRay's
        return True
    status = _internal_kv_get(DEBUG_AUTOSCALING_STATUS)  # of the older one, which `ray up` starts
    report = (json.loads(status) if status else {}).get("autoscaler_report") or {}
    # Where nodes are started by hand a monitor reports too, and calls each node a type of its own.
    return any(not kind.startswith("node_") for kind in (report.get("node_type_mapping") or {}).values())


def largest_cluster() -> Resources | None:
    """Return what a cluster that grows can hold at most, None where nobody says so: Ray's own autoscalers do not."""
    most: Resources | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return most or None


def wait_for_room(
    workers: Crew, say: Callable[[str], None], stopping: Callable[[], bool], *, known_to_fit: bool = False
) -> int:
    """Return how many workers to start, once the cluster has room for at least `workers.min`; 0 when `stopping`.

    On a cluster that grows all of them are, as asking is what makes it grow. Raises PlanError when the cluster can
    never hold the job, which is not asked where that is `known_to_fit` once nodes are back or where a cluster grows
    and nobody says how far, or when `workers.wait_seconds` are over.
    """
    most, now = largest_cluster(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if most is None and grows():
        if too_small := refusal(workers, now):
            say(f"waiting for nodes: {too_small.partition('.')[0]}, which adds nodes on demand")
        return workers.max
    if not known_to_fit and (too_small := refusal(workers, [most] if most else now)):
        raise PlanError(too_small)
    if most:
        return fitting_workers(workers, [most])
    deadline = time.monotonic() + workers.wait_seconds
    waiting = False
    while not stopping():
        nodes = free_room(nodes_that_go())
        fits = fitting_workers(workers, nodes)
        if fits >= workers.min:
            return fits
        free = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        if time.monotonic() > deadline:
            raise PlanError(
                f"after workers.wait_seconds ({workers.wait_seconds:g} s) the cluster still has only "
                f"{free['CPU']:g} CPU and {free['GPU']:g} GPU free. "
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
