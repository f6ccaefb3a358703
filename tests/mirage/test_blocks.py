import math

import pytest
import torch

from mirage import MIRAGE, ModelConfig
from mirage.blocks import Block, ChannelAttention, Fusion

TINY = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2), drop_path=0.0)


def test_equal_ratios_reproduce_the_papers_fusion_to_the_bit() -> None:
    a, g, m = (torch.randn(2, 4, 4, 8) for _ in range(3))
    fusion = Fusion([8, 8, 8])
    with torch.no_grad():
        for scale in fusion.scales:
            scale.uniform_(0.5, 1.5)
    s_a, s_g, s_m = fusion.scales
    paper = (a + s_a * torch.sigmoid(g + m), g + s_g * torch.sigmoid(a + m), m + s_m * torch.sigmoid(a + g))
    assert all(torch.equal(x, y) for x, y in zip(fusion([a, g, m]), paper, strict=True))
    assert sum(p.numel() for p in fusion.parameters()) == 3


def test_unequal_branches_meet_through_projections_that_keep_the_variance() -> None:
    torch.manual_seed(0)
    fusion = Fusion([32, 16, 16])
    assert sorted(fusion.projections) == ["0_1", "0_2", "1_0", "2_0"]
    narrow = torch.randn(4096, 16)
    widened = narrow @ fusion.projections["0_1"].T
    assert widened.var().item() == pytest.approx(1, abs=0.05)
    narrowed = torch.randn(4096, 32) @ fusion.projections["1_0"].T
    assert narrowed.var().item() == pytest.approx(1, abs=0.05)


def test_attention_is_a_softmax_over_normalised_channels_head_by_head() -> None:
    torch.manual_seed(0)
    attention = ChannelAttention(8, heads=2).double()
    torch.nn.init.uniform_(attention.temperature, 0.5, 2)
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    q, k, v = attention.qkv_depthwise(attention.qkv(x)).flatten(1, 2).mT.reshape(2, 3, 2, 4, 30).unbind(1)
    q, k = (torch.nn.functional.normalize(t, dim=-1) for t in (q, k))
    mixing = (q @ k.mT * attention.temperature[:, None, None]).softmax(-1)
    expected = (mixing @ v).reshape(2, 8, 5, 6).permute(0, 2, 3, 1)
    torch.testing.assert_close(attention(x), expected)


def test_an_image_without_variation_gives_finite_gradients() -> None:
    block = Block(6, 1, TINY)
    x = torch.zeros(2, 8, 8, 6, requires_grad=True)
    block(x, None).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in (x, *block.parameters()))


def test_bf16_autocast_stays_near_fp32_and_trains() -> None:
    torch.manual_seed(0)
    model = MIRAGE(TINY)
    images = torch.rand(2, 3, 32, 32)
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(images)
    assert rounded.shallow.dtype == rounded.latent.dtype == torch.float32
    change = (exact.image - images).norm()
    assert (rounded.image.float() - exact.image).norm() / change < 0.02
    (rounded.image.float().mean() + (rounded.shallow @ rounded.latent.T).mean()).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert math.isfinite(norm)
    assert norm > 0
