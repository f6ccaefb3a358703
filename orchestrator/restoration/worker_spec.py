"""Say what a restoration worker does and returns."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from mirage.weights import loads
from orchestrator.imaging.photos import Limits
from orchestrator.restoration.restorer import Restorer, Settings, choose_device
from orchestrator.restoration.tasks import Outcome, Workshop

Outcomes = Generator[Outcome, None, None]
"""In no particular order; closing it ends the work."""


LOT = 8
"""Photographs that a worker takes at a time; a kill loses at most so many per worker."""


@dataclass(frozen=True)
class Order:
    """What each worker needs besides tasks: plain data, so that it pickles."""

    weights: bytes
    """The model, as safetensors."""
    settings: Settings
    digest: str
    """Of model and settings."""
    gpu: bool
    threads: int
    overwrite: bool
    batch_size: int
    limits: Limits

    def workshop(self) -> Workshop:
        """Return a workshop whose model is loaded on the first photograph."""
        torch.set_num_threads(self.threads)

        def opened() -> Restorer:
            return Restorer(loads(self.weights, choose_device("cuda" if self.gpu else "cpu")), self.settings)

        return Workshop(
            opened, self.digest, overwrite=self.overwrite, at_once=self.batch_size, limits=self.limits
        )
