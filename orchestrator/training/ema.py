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
from orchestrator.training.tensor_groups import TensorGroups, is_writable, same_form


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
        averages, values = self._pairs()
        updated = []
        for average, value in zip(averages.flat(), values.flat(), strict=True):
            new = value
            if value.is_floating_point():
                wide = at_least_fp32(average)
                new = wide.lerp(value.to(wide.dtype), self._weight.to(wide.dtype)).to(average.dtype)
            updated.append(torch.where(finite, new, average))
        averages.assign(updated)

    def _pairs(self) -> tuple[TensorGroups, TensorGroups]:
        """Return the tensors of average and model in the same order.

        They are listed at each update, since a network may assign another tensor to a buffer. The average takes a
        buffer that has another form now, and leaves out one that the model has made since the start.
        """
        own, model = _tensors(self.network), _tensors(self._model)
        for name, value in model.items():
            if name in own and not same_form(own[name], value):
                owner, _, last = name.rpartition(".")
                setattr(self.network.get_submodule(owner), last, value.detach().clone())
        own = _tensors(self.network)
        names = [name for name in own if name in model and is_writable(own[name])]
        return TensorGroups(own[name] for name in names), TensorGroups(model[name] for name in names)


def _tensors(network: Network) -> dict[str, Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])
