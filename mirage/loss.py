"""The training loss, `l1 * L1 + fourier * Fourier + spd * InfoNCE` and terms of other networks.  Paper: App. C.4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.collective import BatchShare
from mirage.image_losses import IMAGE_LOSSES, image_loss
from mirage.kernels.reference import at_least_fp32
from mirage.model import Output
from mirage.perceptual import PerceptualDistance
from mirage.spd import info_nce


@dataclass(frozen=True, slots=True)
class LossWeights:
    """The weight of each term. A term of weight 0 is not computed.

    The defaults are the release's; the paper's text has `spd=0.05`.
    """

    l1: float = 1.0
    fourier: float = 0.1
    spd: float = 0.01
    temperature: float = 0.1
    """Temperature of InfoNCE; a lower one sharpens the softmax."""
    charbonnier: float = 0.0
    mse: float = 0.0
    psnr: float = 0.0
    ssim: float = 0.0
    edge: float = 0.0
    perceptual: float = 0.0


class LossTerms(NamedTuple):
    """This process's share of the global micro-batch's loss: the sum over processes is the global value.

    `total` is weighted; the other terms are not.
    """

    total: Tensor
    l1: Tensor
    fourier: Tensor
    spd: Tensor
    others: Mapping[str, Tensor] = MappingProxyType({})
    """Other terms that have a weight, by name."""

    def terms(self) -> dict[str, Tensor]:
        """Return every term by name."""
        return {"total": self.total, "l1": self.l1, "fourier": self.fourier, "spd": self.spd, **self.others}


def fourier_distance(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean absolute difference of the real and imaginary parts of the unnormalised spectra.

    In fp32 or better. The transform is linear, so only the difference is transformed.
    """
    with torch.autocast(restored.device.type, enabled=False):
        spectrum = torch.fft.rfft2(at_least_fp32(restored) - at_least_fp32(clean))
        return torch.view_as_real(spectrum).abs().mean()


def restoration_loss(
    output: Output,
    clean: Tensor,
    weights: LossWeights,
    share: BatchShare | None = None,
    perceptual: PerceptualDistance | None = None,
) -> LossTerms:
    """Return the loss of `output` against the clean images (b, 3, h, w).

    share: the position of these b images in the global micro-batch; None if they are all of it. perceptual: the term
    of that name, for a weight above 0.
    """
    fraction = 1.0 if share is None else clean.shape[0] / share.total
    zero = clean.new_zeros((), dtype=torch.promote_types(clean.dtype, torch.float32))

    l1 = fourier = spd = zero
    if weights.l1:
        l1 = F.l1_loss(at_least_fp32(output.image), at_least_fp32(clean)) * fraction
    if weights.fourier:
        fourier = fourier_distance(output.image, clean) * fraction
    if weights.spd:
        if output.shallow is None or output.latent is None:
            raise ValueError(
                f"spd={weights.spd}: this term needs the embeddings that the model returns in training mode, unless "
                "its alignment is none. Call model.train(), or set the weight to 0."
            )
        spd = info_nce(output.shallow, output.latent, weights.temperature, share).to(zero.dtype)
    total = weights.l1 * l1 + weights.fourier * fourier + weights.spd * spd
    others = {}
    for name in (*IMAGE_LOSSES, "perceptual"):
        if weight := getattr(weights, name):
            if name == "perceptual":
                if perceptual is None:
                    raise ValueError(f"perceptual={weight}: this term needs a PerceptualDistance.")
                distance = perceptual(output.image, clean)
            else:
                distance = image_loss(name, output.image, clean)
            others[name] = distance * fraction
            total = total + weight * others[name]
    return LossTerms(total, l1, fourier, spd, others)
