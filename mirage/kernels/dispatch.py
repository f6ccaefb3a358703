"""The same regions and windows for devices other than the CPU, made of parts: Triton's on CUDA, plain ones elsewhere.

`MIRAGE_KERNELS=reference` in the environment takes the plain parts everywhere, on the CPU too, to compare with.
Triton's interpreter (`TRITON_INTERPRET=1`) runs Triton's parts on the CPU, slowly, for tests.
"""

from __future__ import annotations

import importlib.util
import os

import torch.nn.functional as F
from torch import Tensor

from mirage.kernels import reference
from mirage.kernels.autocast import working
from mirage.kernels.triton import ops

CHOICE = os.environ.get("MIRAGE_KERNELS", "auto")
if CHOICE not in ("auto", "reference"):
    raise ValueError(f"MIRAGE_KERNELS={CHOICE}: one of auto, reference.")

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def takes(x: Tensor) -> bool:
    """Whether x is computed here rather than by the operators for the CPU."""
    return x.device.type != "cpu" or INTERPRETED or CHOICE == "reference"


def in_triton(x: Tensor) -> bool:
    """Whether Triton's kernels compute x."""
    here = x.device.type == "cuda" or (x.device.type == "cpu" and INTERPRETED)
    return here and HAS_TRITON and CHOICE == "auto" and x.dtype in ops.TYPES


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, h, w, c), weight (c, k, k) → (b, h, w, c)."""
    run = ops.depthwise if in_triton(x) else reference.depthwise
    out: Tensor = run(x, weight)
    return out


def dynamic_depthwise(x: Tensor, kernels: Tensor) -> Tensor:
    """x (b, h, w, c), kernels (b, c, k, k) → (b, h, w, c)."""
    run = ops.depthwise if in_triton(x) else reference.dynamic_depthwise
    out: Tensor = run(x, kernels)
    return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (b, h, w, c) → per-image mean and sum of squared deviations, (b, c) each."""
    run = ops.moments if in_triton(x) else reference.moments
    mean, squares = run(x)
    return mean, squares


def gram(x: Tensor) -> Tensor:
    """x (b, n, c) → (b, c, c), in fp32 or better."""
    run = ops.gram if in_triton(x) else reference.gram
    out: Tensor = run(x)
    return out


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, taps: Tensor, contract: Tensor
) -> Tensor:
    """Kept for the gradient: x, two numbers per pixel, the hidden map before its GELU, and the gated map."""
    if not in_triton(x):
        return reference.feed_forward(x, scale, shift, expand, taps, contract)
    expand, taps, contract = working(x, expand, taps, contract)
    hidden, _, _ = ops.norm_linear_and_statistics(x, scale, shift, expand, reference.NORM_EPS)
    return F.linear(ops.gated_depthwise(hidden, taps), contract)


def attention_input(x: Tensor, matrix: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """x (b, h, w, c), matrix (3a, c), taps (3a, 3, 3) → v (b, h, w, a), Gram matrix of q and k (b, 2a, 2a)."""
    if not in_triton(x):
        return reference.attention_input(x, matrix, taps)
    x, matrix, taps = working(x, x, matrix, taps)
    qkv = ops.depthwise(F.linear(x, matrix), taps)
    width = matrix.shape[0] // 3
    return qkv[..., 2 * width :], ops.gram(qkv[..., : 2 * width].flatten(1, 2))


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor) -> Tensor:
    """x (b, h, w, c), weight (2n, c), bias (2n), kernels (b, m, k, k), contract (c, n) → (b, h, w, c)."""
    if not in_triton(x):
        return reference.gated_unit(x, weight, bias, kernels, contract)
    x, weight, bias, kernels, contract = working(x, x, weight, bias, kernels, contract)
    return F.linear(ops.gated_values(F.linear(x, weight, bias), kernels), contract)
