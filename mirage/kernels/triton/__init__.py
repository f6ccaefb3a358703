"""Triton backend for CUDA: which module implements which operator. Triton is imported when the first kernel runs.

`operators.py` declares the kernels as operators with gradients, `fused.py` composes them; the other modules are the
kernels.
"""

import torch

from mirage.kernels.reference import channel_mlp, fusion_linear
from mirage.kernels.triton.fused import attention_input, feed_forward, gated_unit
from mirage.kernels.triton.operators import depthwise, gram, moments

__all__ = [
    "DTYPES",
    "attention_input",
    "channel_mlp",
    "depthwise",
    "dynamic_depthwise",
    "feed_forward",
    "fusion_linear",
    "gated_unit",
    "gram",
    "moments",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels read and write."""

dynamic_depthwise = depthwise
"""The same kernel takes filters (c, k, k) for all images and (b, c, k, k) for each."""
