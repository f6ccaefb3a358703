"""Restore photographs on a cluster with Ray Data: a pool of actors, each with the model loaded once.

Only names go into the dataset and only outcomes come out. Actors read and write the stores themselves, so neither
Ray's object store nor the driver ever holds a photograph. A dead actor is replaced and its tasks are done again,
which changes nothing: results are written once.
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
from orchestrator.config.schema import WorkerResources
from orchestrator.errors import ClusterError, OrchestratorError
from orchestrator.restoration.tasks import Outcome, Task
from orchestrator.restoration.worker_spec import Order, Outcomes
from shards.errors import ShardsError

LOTS_PER_BLOCK_AT_MOST = 4
"""A block is what one call of an actor gets, and what is done again when the actor dies."""


class _Worker:
    """One actor of the pool."""

    def __init__(self, order: Any) -> None:
        self._workshop = ray.get(order).workshop()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        outcomes: list[Outcome] = []
        for lot in batch["lot"]:
            outcomes += self._workshop.work(pickle.loads(lot))
        return {"outcome": [pickle.dumps(outcome) for outcome in outcomes]}


def restore_on_cluster(
    order: Order,
    crew: WorkerResources,
    lots: Sequence[Sequence[Task]],
    say: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Outcomes:
    """Yield what becomes of each photograph.

    Raises PlanError when the cluster can never hold the workers, and what a worker raised about a store.
    """
    with connected():
        workers = wait_for_capacity(crew, say, stopping)
        if workers == 0:
            return
        say(f"starting {workers} worker{'' if workers == 1 else 's'} (10 to 30 seconds)")
        _quiet()
        held = ray.put(order)  # for as long as an actor may have to be started again
        blocks = max(math.ceil(len(lots) / LOTS_PER_BLOCK_AT_MOST), min(len(lots), 4 * workers))
        dataset = ray.data.from_items(
            [{"lot": pickle.dumps(list(lot))} for lot in lots], override_num_blocks=blocks
        ).map_batches(
            _Worker,
            fn_constructor_args=(held,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, blocks)),
            num_cpus=crew.cpus,
            **({"num_gpus": crew.gpus} if crew.gpus else {}),
        )
        try:
            for row in dataset.iter_rows():
                yield pickle.loads(row["outcome"])
        except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
            raise _ours(error) from error


def _quiet() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _ours(error: BaseException) -> Exception:
    """Return what the worker raised, when it is an error that a user can cure."""
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None)
        for candidate in (cause, inner):
            if isinstance(candidate, OrchestratorError | ShardsError):
                return type(candidate)(str(candidate).strip().splitlines()[-1])
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    last = str(error).strip().splitlines()[-1]
    return ClusterError(f"a worker failed: {last} Submit the job again to go on.")
