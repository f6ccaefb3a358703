"""Forms of the operators for exporters: the reference, with a dynamic convolution whose batch size stays free.

In the reference the number of groups depends on the number of images, and tracing would freeze it. Here it depends on
the channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels import reference
from mirage.kernels.backend import use_backend


@contextmanager
def exportable() -> Iterator[None]:
    """Make the operators exportable in the whole process within the block."""
    before = reference.dynamic_depthwise
    reference.dynamic_depthwise = dynamic_depthwise
    try:
        with use_backend("reference"):
            yield
    finally:
        reference.dynamic_depthwise = before


class _GroupedConvolution(torch.autograd.Function):
    """A grouped convolution that is written to ONNX as it is: the exporter refuses filters of unknown shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int, padding: int) -> Tensor:
        return F.conv2d(x, weight, padding=padding, groups=groups)

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, groups: int, padding: int) -> Any:
        return graph.op("Conv", x, weight, group_i=groups, pads_i=[padding] * 4)


def dynamic_depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (b, c, k, k).

    Every image is convolved with the filters of all images and keeps its own result: b times the work of the reference.
    """
    batch, height, width, _ = x.shape
    channels, size = int(filters.shape[1]), int(filters.shape[3])
    weight = filters.transpose(0, 1).reshape(-1, 1, size, size)  # (c * b, 1, k, k)
    convolve = _GroupedConvolution.apply if torch.onnx.is_in_onnx_export() else _convolve
    every = convolve(x.permute(0, 3, 1, 2), weight, channels, size // 2)
    every = every.reshape(batch, channels, batch, height, width)
    image = torch.arange(batch, device=x.device)
    return every[image, :, image].permute(0, 2, 3, 1)


def _convolve(x: Tensor, weight: Tensor, groups: int, padding: int) -> Tensor:
    return F.conv2d(x, weight, padding=padding, groups=groups)
