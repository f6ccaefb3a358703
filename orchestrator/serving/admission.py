"""How many requests may be inside, and when one that found no room should come back."""

from __future__ import annotations

import math

RETRY_SECONDS = (1, 60)
"""Least and most that a client is told to wait."""

_WEIGHT = 0.2  # of the newest duration in the running mean


class Room:
    """Counts the requests inside; used from one event loop, so no lock."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.inside = 0
        self._mean_seconds: float | None = None

    def enter(self) -> bool:
        """Take a place, or return False when there is none."""
        if self.inside >= self.capacity:
            return False
        self.inside += 1
        return True

    def leave(self, seconds: float | None = None) -> None:
        """Give the place back; `seconds` is how long a replica was busy with the request."""
        self.inside -= 1
        if seconds is not None:
            before = seconds if self._mean_seconds is None else self._mean_seconds
            self._mean_seconds = before + _WEIGHT * (seconds - before)

    def retry_after(self, replicas: int) -> int:
        """Return in how many whole seconds about one place is free."""
        least, most = RETRY_SECONDS
        expected = (self._mean_seconds or 0.0) / max(replicas, 1)
        return min(max(math.ceil(expected), least), most)
