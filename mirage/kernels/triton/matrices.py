"""Weights in the dtype of the maps, and the gradients of weights.

A step casts the weights of an operator with one launch. Their gradients are added up in fp32 by the matrix product
itself, so that no launch converts them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lowered(dtype: torch.dtype, *weights: Tensor) -> list[Tensor]:
    """Return the weights in this dtype."""
    if all(weight.dtype == dtype for weight in weights):
        return list(weights)
    low = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    torch._foreach_copy_(low, list(weights))
    return low


def weight_gradient(grad: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `grad' x` in this dtype for grad (pixels, n) and x (pixels, c): the gradient of a matrix (n, c)."""
    if grad.dtype == dtype:
        return grad.mT @ x
    try:
        return torch.mm(grad.mT, x, out_dtype=dtype)
    except NotImplementedError:  # on a CPU, under Triton's interpreter
        return grad.to(dtype).mT @ x.to(dtype)


def matrix_precision() -> str:
    """Return the precision of fp32 matrix products in Triton, as torch has it for its own."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
