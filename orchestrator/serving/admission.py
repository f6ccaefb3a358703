"""Admission control: limit the requests in flight and the bytes of uploads, and estimate when to retry."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator

RETRY_AFTER_SECONDS = (1, 60)
"""Smallest and largest value of Retry-After."""

_SMOOTHING = 0.2  # weight of the newest duration in the moving average


class AdmissionControl:
    """Counter of the requests in flight; used from one event loop, so it needs no lock."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self._mean_seconds: float | None = None

    @property
    def full(self) -> bool:
        """Whether there is no capacity for another request."""
        return self.in_flight >= self.capacity

    def acquire(self) -> bool:
        """Admit one request; return False if there is no capacity."""
        if self.full:
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


class UploadBudget:
    """Limit of the bytes of images in memory, from their arrival until their request has its answer.

    Bytes count when they arrive: a client that announces many and sends few holds few.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0

    def upload(self) -> Upload:
        """Return an account of one request."""
        return Upload(self)


class UploadsFullError(Exception):
    """There is no memory for more of this image."""


class Upload:
    """Bytes of one request, which leave the budget at the end of the block."""

    def __init__(self, budget: UploadBudget) -> None:
        self._budget = budget
        self._held = 0

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *error: object) -> None:
        self._budget.held -= self._held

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield `chunks`. Raises UploadsFullError."""
        async for chunk in chunks:
            if self._budget.held + len(chunk) > self._budget.capacity:
                raise UploadsFullError
            self._budget.held += len(chunk)
            self._held += len(chunk)
            yield chunk
