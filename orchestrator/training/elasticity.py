"""Decide when a group of workers is replaced: its nodes are leaving, or the cluster has capacity for more workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from orchestrator.cluster.capacity import Resources, fitting_workers
from orchestrator.config.schema import Workers
from orchestrator.events import CapacityAvailable, NodesDraining, RestartRequested


class ElasticityPolicy:
    """The policy for replacing one group of workers."""

    def __init__(self, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._capacity_since: float | None = None

    def restart(
        self, members: Mapping[int, str], draining: Mapping[str, float], free: Sequence[Resources], now: float
    ) -> RestartRequested | None:
        """Return why the group should be replaced, or None.

        `members`: the workers' nodes by rank. `draining`: node -> Unix time at which it leaves, 0 if not known.
        `free`: free resources of each node that stays. `now`: Unix time.
        """
        leaving = {rank: node for rank, node in sorted(members.items()) if node in draining}
        if leaving:
            known = [draining[node] - now for node in leaving.values() if draining[node]]
            seconds = max(0.0, min(known)) if known else None
            return NodesDraining(tuple(sorted(set(leaving.values()))), tuple(leaving), seconds)
        missing = self._workers.max - len(members)
        more = min(missing, fitting_workers(self._workers, free)) if members and missing > 0 else 0
        if more <= 0:
            self._capacity_since = None
            return None
        self._capacity_since = self._clock() if self._capacity_since is None else self._capacity_since
        if self._clock() - self._capacity_since < self._workers.scale_up_delay_seconds:
            return None
        return CapacityAvailable(more)
