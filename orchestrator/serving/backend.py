"""What the routes need of the replicas: implemented by Ray Serve and, in tests, in one process."""

from __future__ import annotations

from typing import Protocol

from orchestrator.serving.replica import RestoredImage, RestoreFailure
from orchestrator.serving.served_model import ServedModel


class ReplicasFailedError(Exception):
    """Every replica that had the image died, or no replica runs."""


class Backend(Protocol):
    """One or more replicas."""

    replicas: int
    """Number of running replicas."""
    retries: int
    """Number of requests that were sent to another replica after one had died."""

    async def restore(self, data: bytes, model: ServedModel) -> RestoredImage | RestoreFailure:
        """Restore one image file; raises ReplicasFailedError. Cancelling it drops the work."""
        ...


class ManagedBackend(Backend, Protocol):
    """A backend whose front end counts its replicas and tests new models in them."""

    def smoke_test(self, model: ServedModel) -> str:
        """Restore the probe image in a replica; return what is wrong with the model, or ""."""
        ...

    def count_replicas(self) -> None:
        """Update `replicas`."""
        ...
