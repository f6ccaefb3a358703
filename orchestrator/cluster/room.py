"""Whether a cluster can hold a job: refused at once when it never can, waited for when it cannot yet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import ray

from orchestrator.config import Workers
from orchestrator.errors import PlanError

_POLL_SECONDS = 1.0
# CPUs and GPUs come back as floats that sums have rounded.
_SLACK = 1e-6


def fitting_workers(workers: Workers, resources: Mapping[str, float]) -> int:
    """Return how many workers fit in `resources`, at most `workers.max`; possibly fewer than `workers.min`."""
    fits = (resources.get("CPU", 0.0) + _SLACK) / workers.cpus
    if workers.gpus:
        fits = min(fits, (resources.get("GPU", 0.0) + _SLACK) / workers.gpus)
    return min(workers.max, math.floor(fits))


def refusal(workers: Workers, resources: Mapping[str, float]) -> str:
    """Return the arithmetic of why the whole cluster is too small, or "" when it is not."""
    if fitting_workers(workers, resources) >= workers.min:
        return ""
    need = f"{workers.min} x {workers.cpus:g} CPU = {workers.min * workers.cpus:g} CPU"
    have = f"{resources.get('CPU', 0):g} CPU"
    if workers.gpus:
        need += f" and {workers.min} x {workers.gpus:g} GPU = {workers.min * workers.gpus:g} GPU"
        have += f" and {resources.get('GPU', 0):g} GPU"
    return (
        f"the job needs {need}, and the whole cluster has {have}. "
        f"Lower workers.min, workers.cpus or workers.gpus, or use a larger cluster."
    )


def wait_for_room(workers: Workers, say: Callable[[str], None]) -> int:
    """Return how many workers to start, once the cluster has room for at least `workers.min`.

    Raises PlanError when the cluster can never hold the job, or when `workers.wait_seconds` are over.
    """
    if too_small := refusal(workers, ray.cluster_resources()):
        raise PlanError(too_small)
    deadline = time.monotonic() + workers.wait_seconds
    waiting = False
    while (fits := fitting_workers(workers, free := ray.available_resources())) < workers.min:
        if time.monotonic() > deadline:
            raise PlanError(
                f"after workers.wait_seconds ({workers.wait_seconds:g} s) the cluster still has only "
                f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free. See what holds the rest: ray status"
            )
        if not waiting:
            say(
                f"waiting for room: {workers.min} x ({workers.cpus:g} CPU, {workers.gpus:g} GPU) are needed, "
                f"{free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU are free"
            )
            waiting = True
        time.sleep(_POLL_SECONDS)
    return fits
