"""Autocast for custom operators, whose inputs PyTorch does not cast."""

from __future__ import annotations

import torch
from torch import Tensor


def cast_for_autocast(x: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Return `tensors` in the dtype of autocast if it is on for the device of x, otherwise unchanged."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]
