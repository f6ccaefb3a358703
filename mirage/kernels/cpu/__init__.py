"""CPU backend: which module implements which operator."""

from mirage.kernels.cpu.fused import attention_input, channel_mlp, feed_forward, fusion_linear, gated_unit
from mirage.kernels.cpu.operators import depthwise, dynamic_depthwise, moments
from mirage.kernels.reference import gram

__all__ = [
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
