"""Restore photographs on a cluster by a Ray Data actor pool; each actor loads the model once.

Only names enter the dataset and only outcomes leave it: the actors read and write the stores, so neither Ray's object
store nor the driver holds a photograph. The chunks of an actor that died are repeated by another one, which is safe
because results are written once.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.data
import ray.exceptions

from orchestrator.cluster.capacity import wait_for_capacity
from orchestrator.cluster.connection import connected
from orchestrator.cluster.ray_stderr import without_harmless_lines
from orchestrator.config.schema import WorkerResources
from orchestrator.console import count
from orchestrator.errors import ClusterError, OrchestratorError
from orchestrator.restoration.tasks import RestoreOutcome, RestoreTask
from orchestrator.restoration.worker_spec import Outcomes, WorkerSpec
from shards.errors import ShardsError

MAX_CHUNKS_PER_BLOCK = 4
"""A block is the unit of one call of an actor, and is repeated when the actor dies."""


class _Worker:
    """One actor of the pool."""

    def __init__(self, spec: Any) -> None:
        self._worker = ray.get(spec).make_worker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        outcomes: list[RestoreOutcome] = []
        for chunk in batch["chunk"]:
            outcomes += self._worker.run(pickle.loads(chunk))
        outcomes += self._worker.finish()  # Ray may end an actor without a word after any call
        return {"outcome": [pickle.dumps(outcome) for outcome in outcomes]}


def restore_on_cluster(
    spec: WorkerSpec,
    resources: WorkerResources,
    chunks: Sequence[Sequence[RestoreTask]],
    log: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Outcomes:
    """Yield the outcome of each task.

    Raises PlanError if the cluster can never hold the workers, and what a worker raised about a store.
    """
    with connected():
        workers = wait_for_capacity(resources, log, stopping)
        if workers == 0:
            return
        log(f"starting {count(workers, 'worker')} (10 to 30 seconds)")
        _silence_ray_data()
        stored = ray.put(spec)  # referenced here so that a replacement actor can read it
        blocks = max(math.ceil(len(chunks) / MAX_CHUNKS_PER_BLOCK), min(len(chunks), 4 * workers))
        dataset = ray.data.from_items(
            [{"chunk": pickle.dumps(list(chunk))} for chunk in chunks], override_num_blocks=blocks
        ).map_batches(
            _Worker,
            fn_constructor_args=(stored,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, blocks)),
            num_cpus=resources.cpus,
            **({"num_gpus": resources.gpus} if resources.gpus else {}),
        )
        try:
            with without_harmless_lines():
                for row in dataset.iter_rows():
                    yield pickle.loads(row["outcome"])
        except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
            raise _root_cause(error) from error


def _silence_ray_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _root_cause(error: BaseException) -> Exception:
    """Return the error of ours that a worker raised, else a ClusterError."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        for candidate in (cause, inner):
            if isinstance(candidate, OrchestratorError | ShardsError):
                return type(candidate)(str(candidate).strip().splitlines()[-1])
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    last = str(error).strip().splitlines()[-1]
    return ClusterError(f"a worker failed: {last} Submit the job again to continue.")
