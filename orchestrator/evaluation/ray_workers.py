"""Evaluate chunks on workers of the connected Ray cluster.

Each worker is an actor that holds the model. Ray restarts an actor that died and repeats its chunk; its finished chunks
are in the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.exceptions

from orchestrator.cluster.capacity import wait_for_capacity
from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.console import Echo, count
from orchestrator.errors import EvaluationError, OrchestratorError
from orchestrator.evaluation.chunks import EvaluationSpec, EvaluationWorker
from orchestrator.evaluation.image_results import ImageResult
from orchestrator.signals import on_stop
from shards.errors import ShardsError

_POLL_SECONDS = 0.5


def evaluate_on_ray(
    job: EvaluateJob, spec: EvaluationSpec, chunks: Sequence[int], echo: Echo
) -> Iterator[tuple[int, list[ImageResult]]]:
    """Evaluate `chunks` on as many workers as the job allows and the cluster has room for; yield each when it is done.

    SIGTERM and Ctrl-C end the iteration after the chunks in progress. Raises EvaluationError if a worker died more
    often than `workers.max_failures`.
    """
    stopping: list[bool] = []
    with on_stop(lambda: stopping.append(True)):
        workers = min(wait_for_capacity(job.workers, echo, lambda: bool(stopping)), len(chunks))
        if workers == 0:
            return
        echo(f"starting {count(workers, 'worker')} (10 to 30 seconds)")
        actor = ray.remote(
            num_cpus=job.workers.cpus,
            num_gpus=job.workers.gpus,
            max_restarts=job.workers.max_failures,
            max_task_retries=job.workers.max_failures,
        )(EvaluationWorker)
        yield from _distribute([actor.remote(spec) for _ in range(workers)], list(chunks), stopping)


def _distribute(
    idle: list[Any], waiting: list[int], stopping: list[bool]
) -> Iterator[tuple[int, list[ImageResult]]]:
    """Give every idle worker a chunk until none is left or the job is stopped."""
    waiting.reverse()
    busy: dict[Any, tuple[int, Any]] = {}
    while busy or (waiting and not stopping):
        while idle and waiting and not stopping:
            worker, chunk = idle.pop(), waiting.pop()
            busy[worker.evaluate.remote(chunk)] = (chunk, worker)
        ready, _ = ray.wait(list(busy), timeout=_POLL_SECONDS)
        for reference in ready:
            chunk, worker = busy.pop(reference)
            yield chunk, _result(reference)
            idle.append(worker)


def _result(reference: Any) -> list[ImageResult]:
    try:
        results: list[ImageResult] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, OrchestratorError | ShardsError):
            raise EvaluationError(str(cause)) from error
        raise
    except ray.exceptions.RayActorError as error:
        raise EvaluationError(
            f"a worker died more often than workers.max_failures allows, or could not start: "
            f"{str(error).strip().splitlines()[-1]} Finished images are kept: submit the job again to continue."
        ) from error
    return results
