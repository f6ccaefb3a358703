"""Share the chunks of an evaluation out over workers of the connected Ray cluster.

Each worker is an actor that holds the model. Ray starts one that died anew and gives it its chunk again; what it had
finished is in the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import ray.exceptions

from orchestrator.cluster.capacity import wait_for_capacity
from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.console import Say
from orchestrator.errors import EvaluationError, OrchestratorError
from orchestrator.evaluation.chunks import EvaluationSpec, EvaluationWorker
from orchestrator.evaluation.image_results import ImageResult
from orchestrator.signals import on_stop
from shards.errors import ShardsError

_POLL_SECONDS = 0.5


class _Judge(EvaluationWorker):
    """A worker of Ray's; it knows its process, so that whoever watches can name it."""

    def pid(self) -> int:
        """Return the process id."""
        return os.getpid()


def scatter(
    job: EvaluateJob, assignment: EvaluationSpec, chunks: Sequence[int], say: Say
) -> Iterator[tuple[int, list[ImageResult]]]:
    """Judge `chunks` on as many workers as the job allows and the cluster has room for; yield each as it is done.

    SIGTERM and Ctrl-C end it after the chunks that are under way. Raises EvaluationError when a worker died more often
    than `workers.max_failures`.
    """
    asked: list[bool] = []
    with on_stop(lambda: asked.append(True)):
        workers = min(wait_for_capacity(job.workers, say, lambda: bool(asked)), len(chunks))
        if workers == 0:
            return
        say(f"starting {workers} worker{'' if workers == 1 else 's'} (10 to 30 seconds)")
        actor = ray.remote(
            num_cpus=job.workers.cpus,
            num_gpus=job.workers.gpus,
            max_restarts=job.workers.max_failures,
            max_task_retries=job.workers.max_failures,
        )(_Judge)
        idle = [actor.remote(assignment) for _ in range(workers)]
        yield from _share_out(idle, list(chunks), asked)


def _share_out(
    idle: list[Any], waiting: list[int], asked: list[bool]
) -> Iterator[tuple[int, list[ImageResult]]]:
    """Give every idle worker a chunk, and the next one to whoever is done."""
    waiting.reverse()
    busy: dict[Any, tuple[int, Any]] = {}
    while busy or (waiting and not asked):
        while idle and waiting and not asked:
            judge, chunk = idle.pop(), waiting.pop()
            busy[judge.judge.remote(chunk)] = (chunk, judge)
        ready, _ = ray.wait(list(busy), timeout=_POLL_SECONDS)
        for reference in ready:
            chunk, judge = busy.pop(reference)
            yield chunk, _result(reference)
            idle.append(judge)


def _result(reference: Any) -> list[ImageResult]:
    try:
        found: list[ImageResult] = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, OrchestratorError | ShardsError):
            raise EvaluationError(str(cause)) from error
        raise
    except ray.exceptions.RayActorError as error:
        raise EvaluationError(
            f"a worker died more often than workers.max_failures allows, or could not start: "
            f"{str(error).strip().splitlines()[-1]} What is done is kept: submit the job again to go on."
        ) from error
    return found
