"""Restoration of images of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mirage.config import TOTAL_STRIDE
from mirage.cuda_graphs import GraphedModel, LRUCache
from mirage.model import MIRAGE
from mirage.strips import forward_in_strips
from mirage.tiles import forward_in_tiles

Mode = Literal["auto", "whole", "strips", "tiles"]

WHOLE_BYTES = 2**30
"""Memory above which `auto` uses strips instead of the whole image."""

GRAPH_PIXELS = 2**19
"""Pixels of a batch above which memory traffic, and not the launches, decides the time: no graph is recorded."""


class RepeatedSizes:
    """The CUDA graphs of one model for sizes that come again, so that a size that comes once is not recorded.

    The model must keep its weights. On other devices than CUDA there are none.
    """

    def __init__(self, model: MIRAGE, sizes: int = 4) -> None:
        self._graphed = GraphedModel(model, shapes=sizes)
        self._seen: LRUCache[tuple[int, ...], None] = LRUCache(64)

    def graphs(self, degraded: Tensor) -> GraphedModel | None:
        """Return the graphs for `restore` if a small batch of this size has come before, None otherwise."""
        if degraded.device.type != "cuda" or degraded[..., 0, :, :].numel() > GRAPH_PIXELS:
            return None
        size = tuple(degraded.shape)
        again = size in self._seen
        self._seen.get(size, lambda: None)
        return self._graphed if again else None


def restore(
    model: MIRAGE,
    degraded: Tensor,
    mode: Mode = "auto",
    *,
    tile: int = 512,
    overlap: int = 64,
    graphs: GraphedModel | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Restore one image (3, h, w) or a batch (b, 3, h, w); h and w may be anything from 1 pixel up.

    degraded: float RGB in [0, 1]. The result has the same shape, device and dtype, in [0, 1]. Sides are padded by
    reflection to multiples of 8, and the result is cropped. The model runs in eval mode, on its own device and in its
    own dtype; its mode is restored afterwards.

    mode: `whole` runs the image at once; `strips` gives the same result up to rounding in bounded memory; `tiles`
    restores overlapping tiles (`tile` pixels a side, multiples of 8, sharing `overlap`) as images of their own, with
    another result. `auto` uses `whole` if that needs at most `WHOLE_BYTES`, `strips` otherwise.
    graphs: this model's CUDA graphs, which replay whole images; useful for many small images of equal size.
    progress: called with (work done, total work) in the modes that take several steps.
    """
    check_image(degraded)
    if tile < TOTAL_STRIDE or tile % TOTAL_STRIDE:
        near = max(tile // TOTAL_STRIDE * TOTAL_STRIDE, TOTAL_STRIDE)
        raise ValueError(f"tile={tile}: must be a multiple of {TOTAL_STRIDE}. Nearest: {near}.")
    if graphs is not None and graphs.model is not model:
        raise ValueError("graphs: belong to another model. Use GraphedModel(model) of this one.")
    weight = model.output.weight
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            batch = degraded if degraded.dim() == 4 else degraded[None]
            batch = batch.to(weight.device, weight.dtype)
            if mode == "auto":
                mode = "whole" if whole_bytes(model, batch) <= WHOLE_BYTES else "strips"
            if mode == "tiles":
                image = forward_in_tiles(
                    lambda x: _forward_padded(model, x, None), batch, tile, overlap, progress
                )
            elif mode == "strips":
                image = _forward_padded(
                    model, batch, lambda x: forward_in_strips(model, x.contiguous(), progress=progress)
                )
            else:
                image = _forward_padded(model, batch, graphs)
            image = image.clamp_(0, 1).to(degraded.device, degraded.dtype)
    finally:
        model.train(was_training)
    # A copy outside inference mode is an ordinary tensor again.
    return torch.empty(degraded.shape, dtype=degraded.dtype, device=degraded.device).copy_(
        image.view(degraded.shape)
    )


def whole_bytes(model: MIRAGE, batch: Tensor) -> int:
    """Estimate the memory of a batch (b, 3, h, w) at once: the maps of a full-resolution block of decoder 1."""
    channels = 2 * model.config.dim
    maps = 1 + 6 * model.config.ffn_expansion  # measured, within 20 %
    return int(batch.shape[0] * batch.shape[2] * batch.shape[3] * channels * maps * batch.element_size())


def _forward_padded(model: MIRAGE, batch: Tensor, forward: Callable[[Tensor], Tensor] | None) -> Tensor:
    padded = reflect_to_multiple(batch, TOTAL_STRIDE)
    image: Tensor = model(padded).image if forward is None else forward(padded)
    return image[..., : batch.shape[2], : batch.shape[3]].contiguous()


def reflect_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad (b, c, h, w) at the right and bottom by repeated reflection to multiples of `multiple`.

    The network pools over the whole image: zeros there would change the result everywhere.
    """
    for axis in (2, 3):
        size = image.shape[axis]
        target = -(-size // multiple) * multiple
        if target > size:
            image = image.index_select(axis, _reflection(size, target).to(image.device))
    return image


def _reflection(size: int, target: int) -> Tensor:
    """Return `target` positions 0, 1, ..., size - 1, size - 2, ..., 0, 1, ...; all 0 for a single pixel."""
    position = torch.arange(target) % max(2 * (size - 1), 1)
    return torch.minimum(position, 2 * (size - 1) - position)


def check_image(degraded: Tensor) -> None:
    """Raise ValueError unless `degraded` is RGB in [0, 1], (3, h, w) or (b, 3, h, w)."""
    shape = tuple(degraded.shape)
    if degraded.dim() not in (3, 4) or shape[-3] != 3 or 0 in shape:
        raise ValueError(f"degraded has shape {shape}: must be non-empty RGB, (3, h, w) or (b, 3, h, w).")
    if not degraded.is_floating_point():
        raise ValueError(
            f"degraded is {degraded.dtype}: must be floats in [0, 1]. For 8-bit images: .float() / 255."
        )
    low, high = (float(value) for value in degraded.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"degraded spans [{low:g}, {high:g}]: must be floats in [0, 1] without NaN. "
            "Divide 8-bit values by 255, or clamp."
        )
