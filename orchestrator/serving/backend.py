"""What the routes need of the replicas: a seam, so that a service runs on Ray Serve and, in tests, without."""

from __future__ import annotations

from typing import Protocol

from orchestrator.serving.replica import Answer, Refusal
from orchestrator.serving.served_model import Served


class NoReplicaError(Exception):
    """No replica could do it: they died on it, or none runs."""


class Backend(Protocol):
    """Replicas, one or many."""

    replicas: int
    """How many run."""
    retries: int
    """How many requests were given to another replica since the first one died."""

    async def restore(self, data: bytes, model: Served) -> Answer | Refusal:
        """Restore one image file. Raises NoReplicaError; being cancelled takes the work back."""
        ...
