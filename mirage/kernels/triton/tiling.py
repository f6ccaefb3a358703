"""Helpers of the Triton kernels: block sizes and GELU. Needs Triton.

Maps are (b, h, w, c) with contiguous channels; the distance between pixels may exceed c, as in a slice of a wider map.
Kernels read bf16, fp16 or fp32, compute in fp32, and add in a fixed order: what several programs add up goes through
partial sums in memory, so that equal inputs give equal bits.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

TILE = 512
"""Elements of a map in one program."""


def tile(width: int, channels: int) -> tuple[int, int]:
    """Return the pixels of a row and the channels of one program, powers of two."""
    block = min(triton.next_power_of_2(channels), 64)
    return min(triton.next_power_of_2(width), max(TILE // block, 1)), block


@triton.jit
def gelu(x):
    """Return GELU of fp32 values, with the exact error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_derivative(x):
    """Return the derivative of GELU at x."""
    below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    return below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
