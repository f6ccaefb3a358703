"""Store and load the network of the perceptual loss.

The file that a job names may be replaced, and is on the driver's machine. So the driver stores its tensors in the run's
folder when the run starts; workers and later submissions read that copy.
"""

from __future__ import annotations

import hashlib

import safetensors.torch
import torch

from mirage.perceptual import PerceptualDistance
from orchestrator.config.schema import Job
from orchestrator.models import perceptual_network
from shards.store import Store
from shards.store.checked import read_named

FOLDER = "perceptual/"


def store_network(job: Job, store: Store) -> None:
    """Store the tensors that the job names in the run's folder, once. Raises ModelError if they are no VGG's."""
    if job.loss.perceptual_network is not None and not store.list(FOLDER):
        data = safetensors.torch.save(perceptual_network.tensors(job.loss))
        store.write(FOLDER + hashlib.sha256(data).hexdigest(), data)


def load_network(job: Job, store: Store, device: torch.device) -> PerceptualDistance | None:
    """Return the distance of a job that weights it, None for others."""
    if not job.loss.perceptual_weight:
        return None
    (kept,) = store.list(FOLDER)
    tensors = safetensors.torch.load(read_named(store, kept))
    return PerceptualDistance(tensors, job.loss.perceptual_layers).to(device)
