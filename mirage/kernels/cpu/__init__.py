"""CPU backend: which module implements which operator.

`attention_input`, `gated_unit` and `moments` are parts of other operators.
"""

from mirage.kernels.cpu.fused import (
    attention,
    attention_input,
    channel_mlp,
    feed_forward,
    fusion_linear,
    gated_convolution,
    gated_unit,
)
from mirage.kernels.cpu.operators import batch_sums, depthwise, dynamic_depthwise, moments
from mirage.kernels.reference import gram, layer_norm, update_running

__all__ = [
    "attention",
    "attention_input",
    "batch_sums",
    "channel_mlp",
    "depthwise",
    "dynamic_depthwise",
    "feed_forward",
    "fusion_linear",
    "gated_convolution",
    "gated_unit",
    "gram",
    "layer_norm",
    "moments",
    "update_running",
]
