"""The forms that exporters understand: plain operators whose attributes do not depend on the input's sizes.

While a model is exported, the seam's functions are their references, and `dynamic_depthwise` is the one below: what
the number of images decides in the reference, the groups of a convolution, the channels decide here, so that the batch
stays free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage import kernels as seam
from mirage.kernels import reference


@contextmanager
def exportable() -> Iterator[None]:
    """Let every function of the seam be one that exporters understand for a while, in the whole process."""
    names = [name for name in seam.__all__ if callable(getattr(seam, name))]
    before = {(module, name): getattr(module, name) for module in (seam, reference) for name in names}
    try:
        reference.dynamic_depthwise = dynamic_depthwise  # the reference's regions are made of it
        for name in names:
            setattr(seam, name, getattr(reference, name))
        yield
    finally:
        for (module, name), function in before.items():
            setattr(module, name, function)


class _Grouped(torch.autograd.Function):
    """A convolution that ONNX's exporter writes as it is: that exporter refuses kernels it knows no sizes of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int, padding: int) -> Tensor:
        return F.conv2d(x, weight, padding=padding, groups=groups)

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, groups: int, padding: int) -> Any:
        return graph.op("Conv", x, weight, group_i=groups, pads_i=[padding] * 4)


def dynamic_depthwise(x: Tensor, kernels: Tensor) -> Tensor:
    """x (b, h, w, c), kernels (b, c, k, k) → (b, h, w, c).

    Every image meets the kernels of all images and keeps its own: b times the reference's work for a batch of b.
    """
    batch, height, width, _ = x.shape
    channels, size = int(kernels.shape[1]), int(kernels.shape[3])
    weight = kernels.transpose(0, 1).reshape(-1, 1, size, size)  # (c * b, 1, k, k)
    convolve = _Grouped.apply if torch.onnx.is_in_onnx_export() else _convolve
    every = convolve(x.permute(0, 3, 1, 2), weight, channels, size // 2)
    every = every.reshape(batch, channels, batch, height, width)
    image = torch.arange(batch, device=x.device)
    return every[image, :, image].permute(0, 2, 3, 1)


def _convolve(x: Tensor, weight: Tensor, groups: int, padding: int) -> Tensor:
    return F.conv2d(x, weight, padding=padding, groups=groups)
