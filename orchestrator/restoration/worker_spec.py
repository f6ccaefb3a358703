"""What a worker of a restoration job needs, and what it returns."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from orchestrator.imaging.photos import Limits
from orchestrator.models.network_file import loads
from orchestrator.restoration.restorer import Restorer, RestoreSettings, choose_device
from orchestrator.restoration.tasks import RestoreOutcome, RestoreWorker

Outcomes = Generator[RestoreOutcome, None, None]
"""Outcomes in any order; closing the generator ends the work."""

CHUNK_SIZE = 8
"""Photographs in one chunk of a worker; a killed worker repeats at most one chunk."""


@dataclass(frozen=True)
class WorkerSpec:
    """Settings of the workers of a job; it can be pickled."""

    weights: bytes
    """The model, as safetensors. The driver has the consent to any code in it."""
    settings: RestoreSettings
    digest: str
    """Digest of model and settings."""
    gpu: bool
    threads: int
    overwrite: bool
    batch_size: int
    limits: Limits

    def make_worker(self) -> RestoreWorker:
        """Return a worker that loads its model with its first photograph."""
        torch.set_num_threads(self.threads)

        def open_model() -> Restorer:
            device = choose_device("cuda" if self.gpu else "cpu")
            return Restorer(loads(self.weights, device, trusted="all"), self.settings)

        return RestoreWorker(
            open_model, self.digest, overwrite=self.overwrite, batch_size=self.batch_size, limits=self.limits
        )
