"""The one seam between the model and hand-made kernels.

Every function here has a plain PyTorch form in `reference.py`, which defines what it computes and runs on any
device. On CPU, `fixed_layout.py` computes the same as opaque operators that keep the channels-last layout.
"""

from __future__ import annotations

from torch import Tensor

from mirage.kernels import fixed_layout, reference
from mirage.kernels.reference import gram

__all__ = ["depthwise", "dynamic_depthwise", "gram", "moments"]


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve each channel of x (b, h, w, c) with its own kernel (c, k, k), k odd, zero padding."""
    run = fixed_layout.depthwise if x.device.type == "cpu" else reference.depthwise
    out: Tensor = run(x, weight.to(x.dtype))
    return out


def dynamic_depthwise(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each channel of each image of x (b, h, w, c) with its own kernel (b, c, k, k)."""
    run = fixed_layout.dynamic_depthwise if x.device.type == "cpu" else reference.dynamic_depthwise
    out: Tensor = run(x, kernels.to(x.dtype))
    return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations over the pixels of each image: (b, h, w, c) → two of (b, c)."""
    run = fixed_layout.moments if x.device.type == "cpu" else reference.moments
    mean, squares = run(x)
    return mean, squares
