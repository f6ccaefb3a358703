"""The types in which an operator works, which autocast cannot choose for operators that it does not know."""

from __future__ import annotations

import torch
from torch import Tensor


def working(x: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Return `tensors` in autocast's type where that is on for the device of x, otherwise as they are."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]
