"""Gradients of matrices, and the precision of matrix products.

Kernels cast weights as they read them. The gradients of weights are added up in fp32 by the matrix product itself, so
that no launch converts them. Or the kernel that has both factors at hand adds it up, if it fits into the registers of a
program: each program goes through a stretch of pixels, and the sums of the programs are added in order.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

LARGEST = 4096
"""Most numbers of a matrix whose gradient a program adds up while it does other work."""

SUMS = 3 * 2**17
"""Most numbers that the programs of a kernel write as sums: 1.5 MiB. A map of 48 channels of 8 crops of 128 x 128 has
12 MiB in bf16."""

PROGRAMS = 512
"""Most programs that add up a gradient, about four for each SM of an H200."""

TILES = 4
"""Fewest tiles of pixels that such a program goes through, if there are as many."""


def padded(size: int) -> int:
    """Return the rows or columns of a matrix product that holds this many: a power of two, and at least 16."""
    return max(int(triton.next_power_of_2(size)), 16)


def fits(weight: Tensor) -> bool:
    """Return whether a program can add up the gradient of this matrix."""
    return padded(weight.shape[0]) * padded(weight.shape[1]) <= LARGEST


def stretches(tiles: int, *weights: Tensor) -> tuple[int, int]:
    """Return how many programs share these tiles and add up the gradients of weights, and the tiles of each."""
    numbers = sum(weight.numel() for weight in weights)
    programs = max(min(triton.cdiv(tiles, TILES), PROGRAMS, SUMS // numbers), 1)
    each = triton.cdiv(tiles, programs)
    return triton.cdiv(tiles, each), each


def weight_gradient(grad: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `grad' x` in this dtype for grad (pixels, n) and x (pixels, c): the gradient of a matrix (n, c)."""
    if grad.dtype == dtype:
        return grad.mT @ x
    try:
        return torch.mm(grad.mT, x, out_dtype=dtype)
    except NotImplementedError:  # PyTorch has out_dtype on CUDA only; CPUs run Triton's interpreter
        return grad.to(dtype).mT @ x.to(dtype)


def matrix_precision() -> str:
    """Return the precision of fp32 matrix products in Triton, as torch has it for its own."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
