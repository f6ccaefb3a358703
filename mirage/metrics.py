"""PSNR and SSIM, each bound to a protocol: without it a number cannot be compared with another paper's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW = 7
"""Side of SSIM's uniform window, in pixels."""

Window = Literal["uniform7"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a pair of images becomes numbers. RGB floats are clipped to [0, 1], never rounded to 8 bits."""

    description: str
    crop_multiple: int
    """Both images are cropped, centred, to multiples of this many pixels."""
    window: Window = "uniform7"


PROTOCOLS = {
    "rgb-crop16": Protocol("the release's: RGB floats, centre crop to multiples of 16", crop_multiple=16),
    "rgb": Protocol("RGB floats, whole image", crop_multiple=1),
}


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 1, per image, in float64.

    (3, h, w) → (), (b, 3, h, w) → (b,). Equal images give infinity.
    """
    _check_pair(restored, clean)
    error = (restored.double() - clean.double()).square().mean((-3, -2, -1))
    return -10 * error.log10()


def ssim(restored: Tensor, clean: Tensor, window: Window = "uniform7") -> Tensor:
    """Structural similarity for a data range of 1, per image, in float64; shapes as in `psnr`.

    A uniform 7 x 7 window inside the image, sample covariance, mean over channels: skimage's default, which
    the release uses. Papers with a Gaussian window report other values.
    """
    _check_pair(restored, clean)
    if window != "uniform7":
        raise ValueError(f"window={window!r}: only uniform7 is known.")
    if min(clean.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images are {_size(clean)}: SSIM's window needs {SSIM_WINDOW} pixels along each axis."
        )

    x, y = restored.double(), clean.double()
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    var_x = sample * (_window_mean(x * x) - mean_x**2)
    var_y = sample * (_window_mean(y * y) - mean_y**2)
    cov = sample * (_window_mean(x * y) - mean_x * mean_y)

    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((-3, -2, -1))


def measure(restored: Tensor, clean: Tensor, protocol: str) -> dict[str, Tensor]:
    """PSNR and SSIM under a protocol of `PROTOCOLS`, per image, float64; images as in `psnr`."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: one of {', '.join(PROTOCOLS)}.")
    rules = PROTOCOLS[protocol]
    _check_pair(restored, clean)
    restored, clean = (
        centre_crop(image.double().clamp(0, 1), rules.crop_multiple) for image in (restored, clean)
    )
    return {"psnr": psnr(restored, clean), "ssim": ssim(restored, clean, rules.window)}


def centre_crop(image: Tensor, multiple: int) -> Tensor:
    """Crop (..., h, w) to the largest centred window of such sides; the end loses an odd pixel."""
    height, width = image.shape[-2:]
    top, left = height % multiple // 2, width % multiple // 2
    bottom, right = top + height // multiple * multiple, left + width // multiple * multiple
    if not (bottom > top and right > left):
        raise ValueError(f"images are {_size(image)}: this protocol crops to multiples of {multiple} pixels.")
    return image[..., top:bottom, left:right]


def _window_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, SSIM_WINDOW, stride=1)


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
