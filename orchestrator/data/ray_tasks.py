"""Independent pieces of work as Ray tasks: each on a core of its own, anywhere in the cluster.

A task that dies with its node is done again on another; one that fails says why. The nodes must see what the work
reads (raw folders on a shared disk, say) and the store that it writes to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.exceptions

from orchestrator.errors import ClusterError
from shards.errors import ShardsError

T = TypeVar("T")
R = TypeVar("R")
Tick = Callable[[int, str], None]

_AHEAD = 2
"""Tasks in flight per core: enough that none waits for the driver, few enough that their results fit in memory."""
_RETRIES = 3


class RayTasks:
    """A `shards.processes.TaskRunner` on the connected cluster."""

    def __call__(
        self, work: Callable[[T, Tick], R], tasks: Sequence[T], on_rows: Tick
    ) -> Iterator[tuple[int, R]]:
        """Index and result of every task, in the order in which they end."""
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_do)
        waiting = iter(enumerate(tasks))
        flying: dict[ray.ObjectRef[Any], int] = {}
        try:
            while True:
                for index, task in _first(waiting, _in_flight() - len(flying)):
                    flying[remote.remote(work, task)] = index
                if not flying:
                    return
                (done,), _ = ray.wait(list(flying), num_returns=1)
                index = flying.pop(done)
                result, rows = _fetch(done)
                on_rows(*rows)
                yield index, result
        finally:
            for reference in flying:
                ray.cancel(reference, force=True)


def _in_flight() -> int:
    """Return how many tasks to have in flight on the cluster as it is now."""
    # A cluster that grows does so for tasks that wait: each look asks for as many nodes again as there are.
    return _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 0)))


def _do(work: Callable[[T, Tick], R], task: T) -> tuple[R, tuple[int, str]]:
    """Do one task and count its rows: a driver far away is told once, not row by row."""
    rows, last = 0, ""

    def tick(more: int, id_: str) -> None:
        nonlocal rows, last
        rows, last = rows + more, id_

    return work(task, tick), (rows, last)


def _fetch(reference: ray.ObjectRef[Any]) -> tuple[Any, tuple[int, str]]:
    try:
        return ray.get(reference)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ShardsError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"a task was lost {_RETRIES + 1} times ({error}). See `ray status`; what is done already is kept: "
            "submit the job again to go on."
        ) from error


def _first(waiting: Iterator[tuple[int, T]], count: int) -> Iterator[tuple[int, T]]:
    return (item for _, item in zip(range(count), waiting, strict=False))
