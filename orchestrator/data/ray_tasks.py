"""Run independent work as Ray tasks, one CPU core each, on any node of the cluster.

A task whose node dies is repeated on another one. All nodes need access to what the work reads, such as raw folders on
a shared disk, and to the store that it writes to.
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
"""Tasks in flight per core: more would hold more results in memory, fewer would let cores wait for the driver."""
_RETRIES = 3


class RayTasks:
    """A `shards.processes.TaskRunner` on the connected cluster."""

    def __call__(
        self, work: Callable[[T, Tick], R], tasks: Sequence[T], on_rows: Tick
    ) -> Iterator[tuple[int, R]]:
        """Yield index and result of every task, in the order in which they end."""
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_do)
        waiting = iter(enumerate(tasks))
        in_flight: dict[ray.ObjectRef[Any], int] = {}
        try:
            while True:
                for index, task in _first(waiting, _max_in_flight() - len(in_flight)):
                    in_flight[remote.remote(work, task)] = index
                if not in_flight:
                    return
                (done,), _ = ray.wait(list(in_flight), num_returns=1)
                index = in_flight.pop(done)
                result, rows = _fetch(done)
                on_rows(*rows)
                yield index, result
        finally:
            for reference in in_flight:
                ray.cancel(reference, force=True)


def _max_in_flight() -> int:
    """Return how many tasks to have in flight on the cluster as it is now."""
    # An autoscaler adds nodes for waiting tasks, so the number is computed again each time.
    return _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 0)))


def _do(work: Callable[[T, Tick], R], task: T) -> tuple[R, tuple[int, str]]:
    """Do one task and count its rows, which are reported once at its end, not one by one."""
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
            f"a task was lost {_RETRIES + 1} times ({error}). See `ray status`. Finished work is kept: "
            "submit the job again to continue."
        ) from error


def _first(waiting: Iterator[tuple[int, T]], count: int) -> Iterator[tuple[int, T]]:
    return (item for _, item in zip(range(count), waiting, strict=False))
