"""Memory layout of the maps that kernels take: pixels at an even distance, the channels of each contiguous."""

from __future__ import annotations

from torch import Tensor


def with_pixel_stride(x: Tensor) -> tuple[Tensor, int]:
    """Return x (b, h, w, c) and the distance between neighbouring pixels, in elements.

    A slice of the channels of a wider map is returned as it is; x is copied only if its pixels are unevenly spaced.
    """
    stride = x.stride(2)
    even = x.stride(3) == 1 and x.stride(1) == x.shape[2] * stride and x.stride(0) == x.shape[1] * x.stride(1)
    return (x, stride) if even else (x.contiguous(), x.shape[3])
