"""Gradients of matrices, and the precision of matrix products.

Kernels cast weights as they read them. The gradients of weights are added up in fp32 by the matrix product itself, so
that no launch converts them.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
