"""Images of any size through the model."""

from __future__ import annotations

import torch
from torch import Tensor

from mirage.config import TOTAL_STRIDE
from mirage.model import MIRAGE


def restore(model: MIRAGE, degraded: Tensor) -> Tensor:
    """Restore one image (3, h, w) or a batch (b, 3, h, w); h and w may be anything from 1 pixel up.

    degraded: float RGB in [0, 1]. The result has its shape, device and type, and lies in [0, 1].
    Sides are padded by reflection to multiples of 8, and the result is cropped exactly. The model runs in
    eval mode, on its own device and in its own type, and is afterwards in the mode that it was in before.
    """
    _check(degraded)
    weight = model.output.weight
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            batch = degraded if degraded.dim() == 4 else degraded[None]
            padded = reflect_to_multiple(batch.to(weight.device, weight.dtype), TOTAL_STRIDE)
            image: Tensor = model(padded).image[..., : batch.shape[-2], : batch.shape[-1]].clamp(0, 1)
    finally:
        model.train(was_training)
    # A clone outside inference mode is an ordinary tensor again.
    return image.to(degraded.device, degraded.dtype).clone().view(degraded.shape)


def reflect_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Continue (b, c, h, w) to the right and below by reflection, as often as it takes, to multiples.

    The network pools over the whole image, so that zeros there would change it everywhere.
    """
    for axis in (2, 3):
        size = image.shape[axis]
        target = -(-size // multiple) * multiple
        if target > size:
            image = image.index_select(axis, _reflection(size, target).to(image.device))
    return image


def _reflection(size: int, target: int) -> Tensor:
    """`target` positions 0, 1, ..., size - 1, size - 2, ..., 0, 1, ...; all 0 for a single pixel."""
    position = torch.arange(target) % max(2 * (size - 1), 1)
    return torch.minimum(position, 2 * (size - 1) - position)


def _check(degraded: Tensor) -> None:
    shape = tuple(degraded.shape)
    if degraded.dim() not in (3, 4) or shape[-3] != 3 or 0 in shape:
        raise ValueError(f"degraded has shape {shape}: expected RGB as (3, h, w) or (b, 3, h, w), not empty.")
    if not degraded.is_floating_point():
        raise ValueError(
            f"degraded is {degraded.dtype}: expected floats in [0, 1]. For 8-bit images: .float() / 255."
        )
    low, high = (float(value) for value in degraded.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"degraded spans [{low:g}, {high:g}]: expected floats in [0, 1] without NaN. "
            "Divide 8-bit values by 255, or clamp."
        )
