"""How to call peers that need more than the image. Copy this file into the folder that the job imports from.

cp jobs/peers/adapters.py MoCE-IR/src/
"""

from __future__ import annotations

from torch import Tensor, nn


def moce_ir(network: nn.Module, degraded: Tensor, labels: Tensor | None) -> object:
    """Call MoCE-IR; while it trains, with the balance loss of its experts, which its forward pass leaves in itself."""
    image = network(degraded, labels)
    return (image, {"balance": network.total_loss}) if network.training else image
