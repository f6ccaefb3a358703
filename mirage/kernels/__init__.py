"""The one seam between the model and hand-made kernels.

Every function here has a plain PyTorch form in `reference.py`, which defines what it computes and runs on any
device. On CPU, `fixed_layout.py` computes windows and moments as opaque operators that keep the channels-last layout,
and `regions.py` whole regions of a block that keep their inputs alone for the gradient. Elsewhere `composed.py` makes
the regions of parts: of Triton's kernels on CUDA (`triton_ops.py`), of plain PyTorch on other devices.

Regions: `feed_forward`, `attention_input`, `gated_unit`, `channel_mlp`, `fused_product`. They are made of parts:
`norm_linear`, `gated_depthwise`, `depthwise_gram`, `gated_values` and the windows. Under autocast all of them work in
autocast's type, except norms and Gram matrices, which are fp32.
"""

from __future__ import annotations

from torch import Tensor

from mirage.kernels import dispatch, reference
from mirage.kernels.autocast import working
from mirage.kernels.cpu import fused, operators
from mirage.kernels.reference import (
    NORM_EPS,
    depthwise_gram,
    gated_depthwise,
    gated_values,
    norm_linear,
)

__all__ = [
    "NORM_EPS",
    "attention_input",
    "channel_mlp",
    "depthwise",
    "depthwise_gram",
    "dynamic_depthwise",
    "feed_forward",
    "fused_product",
    "gated_depthwise",
    "gated_unit",
    "gated_values",
    "gram",
    "moments",
    "norm_linear",
]


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve each channel of x (b, h, w, c) with its own kernel (c, k, k), k odd, zero padding."""
    run = dispatch.depthwise if dispatch.takes(x) else operators.depthwise
    out: Tensor = run(x, weight.to(x.dtype))
    return out


def dynamic_depthwise(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each channel of each image of x (b, h, w, c) with its own kernel (b, c, k, k)."""
    run = dispatch.dynamic_depthwise if dispatch.takes(x) else operators.dynamic_depthwise
    out: Tensor = run(x, kernels.to(x.dtype))
    return out


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations over the pixels of each image: (b, h, w, c) → two of (b, c)."""
    run = dispatch.moments if dispatch.takes(x) else operators.moments
    mean, squares = run(x)
    return mean, squares


def gram(x: Tensor) -> Tensor:
    """Inner products of channels over pixels, (b, n, c) → (b, c, c), in fp32 or better."""
    return dispatch.gram(x) if dispatch.takes(x) else reference.gram(x)


def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, taps: Tensor, contract: Tensor
) -> Tensor:
    """Layer norm and feed-forward network of x (b, h, w, c).

    scale, shift (c,) of the norm; expand (2n, c); GELU; taps (2n, 3, 3); the first half gates the second; contract
    (c, n).
    """
    if dispatch.takes(x):
        return dispatch.feed_forward(x, scale, shift, expand, taps, contract)
    out: Tensor = fused.feed_forward(x, scale, shift, *working(x, expand, taps, contract))
    return out


def attention_input(x: Tensor, matrix: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """What channel attention takes of x (b, h, w, c): v (b, h, w, a), and the Gram matrix of q and k (b, 2a, 2a).

    matrix (3a, c) and taps (3a, 3, 3) give q, k and v; the Gram matrix is fp32 or better.
    """
    if dispatch.takes(x):
        return dispatch.attention_input(x, matrix, taps)
    v, inner = fused.attention_input(*working(x, x, matrix, taps))
    return v, inner


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, kernels: Tensor, contract: Tensor) -> Tensor:
    """Gated 7x7 convolution of x (b, h, w, c), each image by its own kernels (b, m, k, k).

    weight (2n, c) and bias (2n,) give the gate, n channels, and n values of which the last m are convolved; contract
    (c, n).
    """
    if dispatch.takes(x):
        return dispatch.gated_unit(x, weight, bias, kernels, contract)
    out: Tensor = fused.gated_unit(*working(x, x, weight, bias, kernels, contract))
    return out


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Two layers at each pixel of x (b, h, w, c), GELU between them."""
    if dispatch.takes(x):
        return reference.channel_mlp(x, expand, contract)
    out: Tensor = fused.channel_mlp(*working(x, x, expand, contract))
    return out


def fused_product(branches: list[Tensor], scales: Tensor, weight: Tensor) -> Tensor:
    """Equally wide branches (b, h, w, c), each lifted by the others: `z_i + s_i sigmoid(sum of z_j, j != i)`.

    scales (branches,). Then the product of all of them side by side with weight (o, branches * c).
    """
    if dispatch.takes(branches[0]):
        return reference.fused_product(branches, scales, weight)
    scales, weight, *branches = working(branches[0], scales, weight, *branches)
    out: Tensor = fused.fused_product(branches, scales, weight)
    return out
