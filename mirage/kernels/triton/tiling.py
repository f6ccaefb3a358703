"""What the Triton kernels share: how a map lies in memory, block sizes, GELU. Needs Triton.

Maps are (b, h, w, c) with channels side by side; pixels may be further apart than c, as in a slice of a wider map.
Kernels read bf16, fp16 or fp32, compute in fp32, and add in a fixed order: what several programs add up goes through
partial sums in memory, so that equal inputs give equal bits.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE = 512
"""Elements of a map that one program holds at a time."""


def pixel_step(x: Tensor) -> tuple[Tensor, int]:
    """x (b, h, w, c) and the distance from pixel to pixel, in elements; copied only where there is no such distance."""
    _, height, width, channels = x.shape
    step = x.stride(2)
    if x.stride(3) == 1 and x.stride(1) == width * step and x.stride(0) == height * width * step:
        return x, step
    return x.contiguous(), channels


def side_by_side(taps: Tensor) -> Tensor:
    """(c, k, k) → (k, k, c), (b, c, k, k) → (b, k, k, c): the channels of a tap side by side, as in a map."""
    return taps.movedim(-3, -1).contiguous()


def tile(width: int, channels: int) -> tuple[int, int]:
    """Pixels of a row and channels that one program works on, powers of two."""
    wide = min(triton.next_power_of_2(channels), 64)
    return min(triton.next_power_of_2(width), max(TILE // wide, 1)), wide


@triton.jit
def gelu(x):
    """Of fp32, with the exact error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_slope(x):
    """Of GELU at x."""
    below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    return below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
