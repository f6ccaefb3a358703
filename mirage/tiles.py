"""Large images in overlapping tiles: each tile is restored as an image of its own, and the overlaps are blended.

Not equal to the whole image: attention and the generated kernels then see a tile instead of the image.
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
    """Restore (b, 3, h, w) by `forward` on tiles of at most `tile` pixels a side that share `overlap` pixels or more.

    Where tiles overlap, their weights rise and fall linearly and add up to 1.
    """
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"overlap={overlap}: at least 0 and at most half of the tile, {tile // 2}.")
    height, width = degraded.shape[2:]
    tops, lefts = starts(height, tile, overlap), starts(width, tile, overlap)
    down, across = (blends(size, at, tile, degraded) for size, at in ((height, tops), (width, lefts)))
    image = torch.zeros_like(degraded)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            rows, columns = slice(top, top + tile), slice(left, left + tile)
            weight = down[i, rows, None] * across[j, None, columns]
            image[:, :, rows, columns] += forward(degraded[:, :, rows, columns]) * weight
            if progress is not None:
                progress(i * len(lefts) + j + 1, len(tops) * len(lefts))
    return image


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: evenly spread, the first at 0, the last ending at `size`."""
    if size <= tile:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def blends(size: int, at: list[int], tile: int, like: Tensor) -> Tensor:
    """Weights (tiles, size) of the tiles that begin at `at`; every column adds up to 1.

    A tile counts by the distance to its nearer end, and each column is divided by its sum: 1 where a tile is alone,
    a ramp where two meet.
    """
    position = torch.arange(size, device=like.device, dtype=torch.float64)
    tents = [torch.minimum(position - start + 1, start + tile - position).clamp_min(0) for start in at]
    weights = torch.stack(tents)
    return (weights / weights.sum(0)).to(like.dtype)
