"""Read the network of the perceptual loss from the file that a job names."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mirage.perceptual import PerceptualDistance, feature_tensors
from mirage.weights import WeightsError, read_checkpoint
from orchestrator.config.schema import LossConfig
from orchestrator.errors import ModelError
from orchestrator.paths import absolute_uri
from shards.filesystem import read_regular


def tensors(loss: LossConfig) -> dict[str, Tensor]:
    """Return the tensors of the VGG of `loss.perceptual_network`. No pickled code is run. Raises ModelError."""
    assert loss.perceptual_network is not None, "called only for jobs with a perceptual network"
    path = Path(absolute_uri(loss.perceptual_network))
    try:
        data = read_regular(path)
        try:
            content = safetensors.torch.load(data)
        except SafetensorError:  # then it is a PyTorch file
            content = read_checkpoint(data)
        if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
            raise ValueError("it holds no tensors by name.")
        found = feature_tensors(content)
        PerceptualDistance(found, loss.perceptual_layers)
    except (OSError, WeightsError, ValueError) as error:
        raise ModelError(f"loss.perceptual_network {path}: {error}") from error
    return found
