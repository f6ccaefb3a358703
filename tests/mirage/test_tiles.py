from itertools import pairwise

import pytest
import torch

from mirage import MIRAGE, ModelConfig, restore
from mirage.tiles import blend_weights, forward_in_tiles, tile_starts

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 2))


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(5, 8, 2), (8, 8, 4), (9, 8, 4), (100, 32, 0), (101, 32, 16)]
)
def test_tiles_cover_the_axis_and_share_at_least_the_overlap(size: int, tile: int, overlap: int) -> None:
    at = tile_starts(size, tile, overlap)
    assert at[0] == 0
    assert at[-1] == max(size - tile, 0)
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(at))
    weights = blend_weights(size, at, tile, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(weights.sum(0), torch.ones(size, dtype=torch.float64))
    outside = torch.ones_like(weights, dtype=torch.bool)
    for i, start in enumerate(at):
        outside[i, start : start + tile] = False
    assert (weights[outside] == 0).all()


def test_tiles_do_not_change_a_pointwise_function() -> None:
    degraded = torch.rand(2, 3, 50, 71, dtype=torch.float64)
    found = forward_in_tiles(lambda x: x.square(), degraded, 16, 8)
    torch.testing.assert_close(found, degraded.square())


def test_one_tile_is_the_whole_image_and_more_are_close() -> None:
    torch.manual_seed(0)
    model = MIRAGE(CONFIG)
    degraded = torch.rand(3, 60, 45)
    whole = restore(model, degraded, "whole")
    assert torch.equal(restore(model, degraded, "tiles", tile=64, overlap=32), whole)
    tiled = restore(model, degraded, "tiles", tile=32, overlap=16)
    assert 0 < (tiled - whole).abs().mean() < (whole - degraded).abs().mean()


def test_impossible_tiles_are_refused() -> None:
    model, degraded = MIRAGE(CONFIG), torch.rand(3, 20, 20)
    with pytest.raises(ValueError, match="Nearest: 48"):
        restore(model, degraded, "tiles", tile=50)
    with pytest.raises(ValueError, match="from 0 to half"):
        restore(model, degraded, "tiles", tile=16, overlap=9)
