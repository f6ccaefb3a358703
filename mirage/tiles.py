"""Large images in overlapping tiles: each tile is restored as an image of its own, and the overlaps are blended.

The result differs from the whole image's: attention and the generated filters see a tile instead of the image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def forward_in_tiles(
    forward: Callable[[Tensor], Tensor],
    degraded: Tensor,
    tile: int,
    overlap: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Restore (b, 3, h, w) with `forward` on tiles of at most `tile` pixels a side that share `overlap` pixels or more.

    In the overlaps the weights of the tiles rise and fall linearly and add up to 1.
    """
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"overlap={overlap}: must be from 0 to half of the tile, {tile // 2}.")
    height, width = degraded.shape[2:]
    tops, lefts = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    down, across = (
        blend_weights(size, starts, tile, degraded) for size, starts in ((height, tops), (width, lefts))
    )
    image = torch.zeros_like(degraded)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            rows, columns = slice(top, top + tile), slice(left, left + tile)
            weight = down[i, rows, None] * across[j, None, columns]
            image[:, :, rows, columns] += forward(degraded[:, :, rows, columns]) * weight
            if progress is not None:
                progress(i * len(lefts) + j + 1, len(tops) * len(lefts))
    return image


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Return the first pixel of each tile along an axis: evenly spaced from 0, the last tile ending at `size`."""
    if size <= tile:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def blend_weights(size: int, starts: list[int], tile: int, like: Tensor) -> Tensor:
    """Return the weights (tiles, size) of the tiles that begin at `starts`; every column adds up to 1.

    A tile's weight is the distance to its nearer end, divided by the sum over the tiles there.
    """
    position = torch.arange(size, device=like.device, dtype=torch.float64)
    tents = [torch.minimum(position - start + 1, start + tile - position).clamp_min(0) for start in starts]
    weights = torch.stack(tents)
    return (weights / weights.sum(0)).to(like.dtype)
