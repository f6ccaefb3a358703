"""When a group of workers should be replaced by another one: its nodes go, or there is room for more of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from orchestrator.cluster.capacity import Resources, fitting_workers
from orchestrator.config.schema import Workers


class Resizing:
    """Watches one group and gives a reason as soon as there is one."""

    def __init__(self, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._room_since: float | None = None

    def reason(
        self, members: Mapping[int, str], going: Mapping[str, float], free: Sequence[Resources], now: float
    ) -> str:
        """Return why the group should be replaced, or "".

        `members` are the nodes of its workers by rank, `going` says when nodes go (Unix time, as `now` is; 0 where
        nobody knows), and `free` is what is free on the nodes that stay.
        """
        lost = sorted({node for node in members.values() if node in going})
        if lost:
            when = [going[node] - now for node in lost if going[node]]
            until = f" in {max(0.0, min(when)):.0f} s" if when else ""
            ranks = [str(rank) for rank, node in sorted(members.items()) if node in going]
            return f"node {', '.join(n[:8] for n in lost)} goes{until}, with worker {', '.join(ranks)}"
        wanted = self._workers.max - len(members)
        more = min(wanted, fitting_workers(self._workers, free)) if members and wanted > 0 else 0
        if more <= 0:
            self._room_since = None
            return ""
        self._room_since = self._clock() if self._room_since is None else self._room_since
        if self._clock() - self._room_since < self._workers.scale_up_delay_seconds:
            return ""
        return f"there is room for {more} more worker{'' if more == 1 else 's'}"
