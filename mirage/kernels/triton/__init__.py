"""Triton backend for CUDA: which module implements which operator. Triton is imported when the first kernel runs.

`operators.py` declares the operators with gradients; the other modules are their kernels, one module for each branch of
a block and a few that they share.
"""

import torch

from mirage.kernels.triton.fused import (
    attention,
    channel_mlp,
    feed_forward,
    fusion_linear,
    gated_convolution,
    layer_norm,
    update_running,
)
from mirage.kernels.triton.operators import batch_sums, depthwise, gram

__all__ = [
    "DTYPES",
    "attention",
    "batch_sums",
    "channel_mlp",
    "depthwise",
    "dynamic_depthwise",
    "feed_forward",
    "fusion_linear",
    "gated_convolution",
    "gram",
    "layer_norm",
    "update_running",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels read and write."""

dynamic_depthwise = depthwise
"""The same kernel takes filters (c, k, k) for all images and (b, c, k, k) for each."""
