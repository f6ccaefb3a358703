"""Exponential moving average of a model's weights and buffers, by `torch.optim.swa_utils.AveragedModel`."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from orchestrator.models.network import Network


def start(model: Network) -> AveragedModel:
    """Return the average before the first update: a copy of the model in eval mode."""
    average = AveragedModel(model, use_buffers=True).eval()
    average.n_averaged.fill_(1)  # at 0 the first update would replace the copy
    return average


def update(average: AveragedModel, model: nn.Module, decay: float, step: int) -> None:
    """Move the average towards the model, which has just taken `step`.

    The decay grows from 0.1 to `decay`, so that the initial weights soon have no share. BatchNorm's running statistics
    are averaged too: those of the last few batches do not fit the averaged weights.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    average.multi_avg_fn = partial(_blend, weight=weight)
    average.update_parameters(model)


def network_of(average: AveragedModel) -> Network:
    """Return the averaged network."""
    return cast(Network, average.module)


def _blend(averages: list[Tensor], values: list[Tensor], updates: Tensor, *, weight: float) -> None:
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, values, weight)
    else:  # counters of BatchNorm
        for average, value in zip(averages, values, strict=True):
            average.copy_(value)
