"""Whether a cluster can hold a job: refused at once when it never can, waited for when it cannot yet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import ray

from orchestrator.config import Crew
from orchestrator.errors import PlanError

_POLL_SECONDS = 1.0
# CPUs and GPUs come back as floats that sums have rounded.
_SLACK = 1e-6


def fitting_workers(workers: Crew, nodes: Iterable[Mapping[str, float]]) -> int:
    """Return how many workers fit on `nodes`, at most `workers.max`; a worker never spans two nodes."""
    return min(workers.max, sum(_fitting_on(workers, node) for node in nodes))


def _fitting_on(workers: Crew, resources: Mapping[str, float]) -> int:
    fits = (resources.get("CPU", 0.0) + _SLACK) / workers.cpus
    if workers.gpus:
        fits = min(fits, (resources.get("GPU", 0.0) + _SLACK) / workers.gpus)
    return math.floor(fits)


def refusal(workers: Crew, nodes: Sequence[Mapping[str, float]]) -> str:
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


def _sum(nodes: Sequence[Mapping[str, float]], kind: str) -> str:
    each = [node.get(kind, 0.0) for node in nodes]
    total = f"{sum(each):g} {kind}"
    return total if len(each) == 1 else f"{total} on {len(each)} nodes ({', '.join(f'{n:g}' for n in each)})"


def wait_for_room(workers: Crew, say: Callable[[str], None], stopping: Callable[[], bool]) -> int:
    """Return how many workers to start, once the cluster has room for at least `workers.min`; 0 when `stopping`.

    Raises PlanError when the cluster can never hold the job, or when `workers.wait_seconds` are over.
    """
    if too_small := refusal(workers, [node["Resources"] for node in ray.nodes() if node["Alive"]]):
        raise PlanError(too_small)
    deadline = time.monotonic() + workers.wait_seconds
    waiting = False
    while not stopping():
        # Ray tells what is free as one sum; a fragmented cluster shows only when the group is placed.
        free = ray.available_resources()
        fits = fitting_workers(workers, [free])
        if fits >= workers.min:
            return fits
        if time.monotonic() > deadline:
            raise PlanError(
                f"after workers.wait_seconds ({workers.wait_seconds:g} s) the cluster still has only "
                f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free. "
                "See what holds the rest: ray status"
            )
        if not waiting:
            say(
                f"waiting for room: {workers.min} x ({workers.cpus:g} CPU, {workers.gpus:g} GPU) are needed, "
                f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU are free"
            )
            waiting = True
        time.sleep(_POLL_SECONDS)
    return 0
