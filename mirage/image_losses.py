"""Differentiable distances between restored and clean images, as published networks train with them.

Each is a mean over images, so the shares of several processes can be summed. In fp32 or better, also where convolutions
run in TF32: there are none here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels.reference import at_least_fp32

_EPSILON = 1e-3
"""Width of the Charbonnier distance's rounded tip, as in MPRNet."""
_PYRAMID = (0.05, 0.25, 0.4, 0.25, 0.05)
"""Filter of the Laplacian pyramid, as in MPRNet."""
_GAUSSIAN = [math.exp(-0.5 * (offset / 1.5) ** 2) for offset in range(-5, 6)]
_WINDOW = [weight / sum(_GAUSSIAN) for weight in _GAUSSIAN]
"""Filter of SSIM: 11 weights of a Gaussian with standard deviation 1.5."""
_C1, _C2 = 0.01**2, 0.03**2
"""SSIM's constants for values in [0, 1]."""


def charbonnier(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean of sqrt(difference² + 0.001²)."""
    return _charbonnier(restored - clean)


def mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean squared error."""
    return F.mse_loss(restored, clean)


def negative_psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean over images of -PSNR in dB, at most 80 dB each (Chen et al., NAFNet)."""
    errors = (restored - clean).square().mean((1, 2, 3))
    return 10 / math.log(10) * (errors + 1e-8).log().mean()


def dissimilarity(restored: Tensor, clean: Tensor) -> Tensor:
    """Return 1 - SSIM with a Gaussian window (Wang et al., 2004), over the positions at which it fits."""

    def smooth(image: Tensor) -> Tensor:
        return _filtered(image, _WINDOW)

    mean_x, mean_y = smooth(restored), smooth(clean)
    variance_x = smooth(restored * restored) - mean_x * mean_x
    variance_y = smooth(clean * clean) - mean_y * mean_y
    covariance = smooth(restored * clean) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    similarity = similarity / ((mean_x.square() + mean_y.square() + _C1) * (variance_x + variance_y + _C2))
    return 1 - similarity.mean()


def edge(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the Charbonnier distance of the Laplacians (Zamir et al., MPRNet).

    The Laplacian is linear, so only the difference is filtered.
    """
    difference = restored - clean

    def smooth(image: Tensor) -> Tensor:
        return _filtered(F.pad(image, (2, 2, 2, 2), mode="replicate"), _PYRAMID)

    coarse = torch.zeros_like(difference)
    coarse[..., ::2, ::2] = 4 * smooth(difference)[..., ::2, ::2]
    return _charbonnier(difference - smooth(coarse))


IMAGE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "charbonnier": charbonnier,
    "mse": mse,
    "psnr": negative_psnr,
    "ssim": dissimilarity,
    "edge": edge,
}
"""Name of each term -> its function of restored and clean images (b, 3, h, w)."""


def image_loss(name: str, restored: Tensor, clean: Tensor) -> Tensor:
    """Return a term of `IMAGE_LOSSES`, computed without autocast."""
    with torch.autocast(restored.device.type, enabled=False):
        return IMAGE_LOSSES[name](at_least_fp32(restored), at_least_fp32(clean))


def _charbonnier(difference: Tensor) -> Tensor:
    return (difference.square() + _EPSILON**2).sqrt().mean()


def _filtered(image: Tensor, weights: Sequence[float]) -> Tensor:
    """Return (b, c, h, w) filtered along both axes, where the filter fits.

    Shifted images are summed: a convolution or its gradient may round to TF32, and SSIM's variances are small
    differences.
    """
    for axis in (2, 3):
        size = image.shape[axis] - len(weights) + 1
        total = weights[0] * image.narrow(axis, 0, size)
        for place, weight in enumerate(weights[1:], 1):
            total = total.add(image.narrow(axis, place, size), alpha=weight)
        image = total
    return image
