"""Admission control: limit the number of requests in flight, and estimate when to retry."""

from __future__ import annotations

import math

RETRY_AFTER_SECONDS = (1, 60)
"""Smallest and largest value of Retry-After."""

_SMOOTHING = 0.2  # weight of the newest duration in the moving average


class AdmissionControl:
    """Counter of the requests in flight; used from one event loop, so it needs no lock."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self._mean_seconds: float | None = None

    def acquire(self) -> bool:
        """Admit one request; return False if there is no capacity."""
        if self.in_flight >= self.capacity:
            return False
        self.in_flight += 1
        return True

    def release(self, seconds: float | None = None) -> None:
        """End one request; `seconds` is the time that a replica spent on it."""
        self.in_flight -= 1
        if seconds is not None:
            before = seconds if self._mean_seconds is None else self._mean_seconds
            self._mean_seconds = before + _SMOOTHING * (seconds - before)

    def retry_after(self, replicas: int) -> int:
        """Return after how many seconds a client should retry."""
        low, high = RETRY_AFTER_SECONDS
        expected = (self._mean_seconds or 0.0) / max(replicas, 1)
        return min(max(math.ceil(expected), low), high)
