"""PSNR and SSIM under a protocol: crop, colour, rounding and window, without which numbers cannot be compared.

Everything is computed on the device of the images, batched, in float64. SSIM processes large images in strips of
rows, to bound its memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Window = Literal["uniform7", "uniform11", "gaussian11", "gaussian11-sample"]
"""SSIM's window: its shape and side in pixels.

`uniform7` is scikit-image's default; uniform windows use the sample covariance, with the factor n / (n - 1).
`gaussian11` (sigma 1.5) is that of Wang et al. and MATLAB, without the factor; `gaussian11-sample` has the factor,
like scikit-image with `gaussian_weights=True`.
"""

Colour = Literal["rgb", "y", "y-swapped"]
"""The compared channels: RGB; BT.601 luma (16 to 235 of 255); or luma with the weights of red and blue swapped."""

_ROWS = 256
"""Rows of the SSIM map computed at once."""
_SIGMA = 1.5
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_LUMA_OFFSET = 16 / 255


@dataclass(frozen=True, slots=True)
class MetricProtocol:
    """How PSNR and SSIM are computed from a pair of images. Values are clipped to [0, 1] first."""

    description: str
    crop_multiple: int
    """Both images are centre-cropped to multiples of this many pixels."""
    window: Window = "uniform7"
    eight_bits: bool = False
    """Whether values are rounded to multiples of 1/255, as in a saved image."""
    colour: Colour = "rgb"


PROTOCOLS = {
    "rgb-crop16": MetricProtocol(
        "the release's: RGB floats, centre crop to multiples of 16", crop_multiple=16
    ),
    "rgb-crop16-gaussian": MetricProtocol(
        "MoCE-IR's: as rgb-crop16, with a Gaussian SSIM window", crop_multiple=16, window="gaussian11-sample"
    ),
    "rgb": MetricProtocol("RGB floats, whole image (the release's for CDD-11)", crop_multiple=1),
    "rgb8": MetricProtocol(
        "RGB of 8 bits, whole image, MATLAB's SSIM (DCPT, BasicSR)",
        crop_multiple=1,
        window="gaussian11",
        eight_bits=True,
    ),
    "y8": MetricProtocol(
        "luma by BT.601 of RGB of 8 bits, whole image, MATLAB's SSIM",
        crop_multiple=1,
        window="gaussian11",
        eight_bits=True,
        colour="y",
    ),
    "y-histoformer": MetricProtocol(
        "as y8, but red and blue swapped and a uniform 11 x 11 window: what Histoformer's script computes",
        crop_multiple=1,
        window="uniform11",
        eight_bits=True,
        colour="y-swapped",
    ),
}


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB for a peak of 1, per image, in float64.

    (3, h, w) → (), (b, 3, h, w) → (b,). Equal images give infinity.
    """
    _check_pair(restored, clean)
    return _psnr(restored, clean)


def ssim(restored: Tensor, clean: Tensor, window: Window = "uniform7") -> Tensor:
    """Return the structural similarity for a data range of 1, per image, in float64; shapes as in `psnr`.

    The mean over channels and over the positions at which the window fits into the image. The default window is
    scikit-image's, which the release uses.
    """
    _check_pair(restored, clean)
    return _ssim(restored, clean, window)


def measure(restored: Tensor, clean: Tensor, protocol: str) -> dict[str, Tensor]:
    """Return PSNR and SSIM under a protocol of `PROTOCOLS`, per image, in float64; shapes as in `psnr`."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: must be one of {', '.join(PROTOCOLS)}.")
    rules = PROTOCOLS[protocol]
    _check_pair(restored, clean)
    restored, clean = (_prepared(image, rules) for image in (restored, clean))
    return {"psnr": _psnr(restored, clean), "ssim": _ssim(restored, clean, rules.window)}


def centre_crop(image: Tensor, multiple: int) -> Tensor:
    """Crop (..., h, w) centrally to multiples of `multiple`; an odd pixel is removed at the end."""
    height, width = image.shape[-2:]
    top, left = height % multiple // 2, width % multiple // 2
    bottom, right = top + height // multiple * multiple, left + width // multiple * multiple
    if not (bottom > top and right > left):
        raise ValueError(f"images are {_size(image)}: this protocol crops to multiples of {multiple} pixels.")
    return image[..., top:bottom, left:right]


def _prepared(image: Tensor, rules: MetricProtocol) -> Tensor:
    """Crop, clip, round and convert an image: (..., 3, h, w), or (..., 1, h, w) for luma; float64."""
    image = centre_crop(image, rules.crop_multiple).double().clamp(0, 1)
    if rules.eight_bits:
        image = image.mul(255).round().div(255)
    if rules.colour == "rgb":
        return image
    weights = _LUMA if rules.colour == "y" else _LUMA[::-1]
    luma = torch.tensor(weights, dtype=torch.float64, device=image.device)
    return torch.einsum("...chw,c->...hw", image, luma).unsqueeze(-3) + _LUMA_OFFSET


def _psnr(restored: Tensor, clean: Tensor) -> Tensor:
    error = (restored.double() - clean.double()).square().mean((-3, -2, -1))
    return -10 * error.log10()


def _ssim(restored: Tensor, clean: Tensor, window: Window) -> Tensor:
    if window not in get_args(Window):
        raise ValueError(f"window={window!r}: must be one of {', '.join(get_args(Window))}.")
    weights, sample = _window(window, clean.device)
    side = len(weights)
    if min(clean.shape[-2:]) < side:
        raise ValueError(f"images are {_size(clean)}: SSIM's window needs {side} pixels along each axis.")
    rows = clean.shape[-2] - side + 1
    total = torch.zeros(clean.shape[:-3], dtype=torch.float64, device=clean.device)
    for top in range(0, rows, _ROWS):
        strip = slice(top, min(top + _ROWS, rows) + side - 1)
        x, y = restored[..., strip, :].double(), clean[..., strip, :].double()
        total += _similarity(x, y, weights, sample).sum((-3, -2, -1))
    return total / (clean.shape[-3] * rows * (clean.shape[-1] - side + 1))


def _similarity(x: Tensor, y: Tensor, weights: Tensor, sample: float) -> Tensor:
    """Return the SSIM map, (..., c, h - side + 1, w - side + 1)."""
    mean_x, mean_y = _weighted(x, weights), _weighted(y, weights)
    var_x = sample * (_weighted(x * x, weights) - mean_x**2)
    var_y = sample * (_weighted(y * y, weights) - mean_y**2)
    cov = sample * (_weighted(x * y, weights) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def _window(window: Window, device: torch.device) -> tuple[Tensor, float]:
    """Return the window along one axis, and the factor of its covariance."""
    uniform = window.startswith("uniform")
    side = 7 if window == "uniform7" else 11
    if uniform:
        weights = torch.full((side,), 1 / side, dtype=torch.float64)
    else:
        offsets = torch.arange(side, dtype=torch.float64) - side // 2
        weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
        weights /= weights.sum()
    sampled = uniform or window == "gaussian11-sample"
    return weights.to(device), side**2 / (side**2 - 1) if sampled else 1.0


def _weighted(x: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of (..., h, w) at each position of the separable window."""
    flat = x.reshape(math.prod(x.shape[:-2]), 1, *x.shape[-2:])
    flat = F.conv2d(flat, weights.view(1, 1, -1, 1))
    flat = F.conv2d(flat, weights.view(1, 1, 1, -1))
    return flat.view(*x.shape[:-2], *flat.shape[-2:])


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]} x {image.shape[-1]} pixels"


def _check_pair(restored: Tensor, clean: Tensor) -> None:
    shape = tuple(clean.shape)
    if restored.shape != clean.shape or clean.dim() not in (3, 4) or shape[-3] != 3:
        raise ValueError(
            f"restored {tuple(restored.shape)}, clean {shape}: both must be (3, h, w) or both (b, 3, h, w)."
        )
    if not (restored.is_floating_point() and clean.is_floating_point()):
        raise ValueError(
            f"restored is {restored.dtype}, clean is {clean.dtype}: both must be floats in [0, 1]."
        )
