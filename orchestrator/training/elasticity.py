"""Decide when a group of workers is replaced because the cluster has capacity for more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from orchestrator.cluster.capacity import Resources, fitting_workers
from orchestrator.config.schema import Workers
from orchestrator.events import CapacityAvailable


class ElasticityPolicy:
    """The policy for replacing one group of workers."""

    def __init__(self, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._capacity_since: float | None = None

    def restart(self, workers: int, free: Sequence[Resources]) -> CapacityAvailable | None:
        """Return why a group of this many workers should be replaced, or None.

        `free`: free resources of each node that stays.
        """
        missing = self._workers.max - workers
        more = min(missing, fitting_workers(self._workers, free)) if workers else 0
        if more <= 0:
            self._capacity_since = None
            return None
        self._capacity_since = self._clock() if self._capacity_since is None else self._capacity_since
        if self._clock() - self._capacity_since < self._workers.scale_up_delay_seconds:
            return None
        return CapacityAvailable(more)
