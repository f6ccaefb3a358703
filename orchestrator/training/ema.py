"""Exponential moving average of a model's weights and buffers.

`torch.optim.swa_utils.AveragedModel` decides on the host whether to update, so it would have to wait for the device to
learn whether a step was skipped.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mirage.kernels.reference import at_least_fp32
from orchestrator.models.network import Network
from orchestrator.training.tensor_groups import TensorGroups


class WeightAverage:
    """The average of a model that is being trained: a copy in eval mode before the first update."""

    def __init__(self, model: Network) -> None:
        self.network = copy.deepcopy(model).eval()
        self._model = model
        device = next(model.parameters()).device
        self._weight = torch.zeros((), dtype=torch.float64, device=device)

    def set_weight(self, decay: float, step: int) -> None:
        """Set the model's weight in the update after `step`.

        The decay grows from 0.1 to `decay`, so that the initial weights soon have no share.
        """
        self._weight.fill_(1 - min(decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """Move the average towards the model if the step was `finite`, a bool on the device.

        BatchNorm's running statistics are averaged too: those of the last few batches do not fit the averaged weights.
        """
        updated = []
        # Listed at each update: a network may assign another tensor to a buffer.
        averages = _tensors(self.network)
        for average, value in zip(averages.flat(), _tensors(self._model).flat(), strict=True):
            new = value
            if value.is_floating_point():
                wide = at_least_fp32(average)
                new = wide.lerp(value.to(wide.dtype), self._weight.to(wide.dtype)).to(average.dtype)
            updated.append(torch.where(finite, new, average))
        averages.assign(updated)


def _tensors(network: Network) -> TensorGroups:
    return TensorGroups([*network.parameters(), *network.buffers()])
