"""LPIPS, a metric that needs another network: its package and weights are not part of this project.

`pip install 'mirage-orchestrator[lpips]'` installs the package `lpips` and with it torchvision, which downloads the
backbone's weights (AlexNet or VGG-16, trained on ImageNet) when they are first used.
"""

from __future__ import annotations

from typing import Literal
from urllib.error import URLError

import torch
from torch import Tensor

from orchestrator.errors import EvaluationError
from orchestrator.evaluation.image_results import PerceptualDistance


def load_lpips(backbone: Literal["alex", "vgg"], device: torch.device) -> PerceptualDistance:
    """Return LPIPS 0.1 of two float RGB images in [0, 1]. Raises EvaluationError if it is not available."""
    try:
        import lpips  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise EvaluationError(
            f"evaluate.lpips {backbone}: install the extra: pip install 'mirage-orchestrator[lpips]'. "
            "Or set evaluate.lpips to none."
        ) from error
    try:
        network = lpips.LPIPS(net=backbone, verbose=False).to(device).eval()
    except (URLError, OSError) as error:
        raise EvaluationError(
            f"evaluate.lpips {backbone}: the backbone's ImageNet weights cannot be downloaded ({error}). Put "
            f"torchvision's file into {torch.hub.get_dir()}/checkpoints, or set evaluate.lpips to none."
        ) from error

    def distance(restored: Tensor, clean: Tensor) -> float:
        with torch.inference_mode():
            return float(network(restored[None] * 2 - 1, clean[None] * 2 - 1))

    return distance
