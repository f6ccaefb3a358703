"""The paper's statistics on matrices whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch

from mirage import MIRAGE, ModelConfig
from mirage.analysis import (
    SCALES,
    channel_similarity,
    components_for,
    contrast,
    cosines,
    covariance_descriptor,
    cumulative_variance,
    embeddings,
    entropy_rank,
    features,
    kernel_alignment,
    rank_ratio,
    spectrum,
)

SMALL = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1), spd_channels=(4, 8))


def with_variances(*variances: float) -> torch.Tensor:
    """Return channels (512, c) with these principal variances and means far from zero."""
    n = 512
    basis = torch.linalg.qr(torch.cat((torch.ones(n, 1), torch.randn(n, len(variances))), 1).double())[0][
        :, 1:
    ]
    scale = torch.tensor(variances, dtype=torch.float64).sqrt() * math.sqrt(n - 1)
    mixed = torch.linalg.qr(torch.randn(len(variances), len(variances)).double())[0]
    return (basis * scale) @ mixed + 7


def test_cumulative_variance_does_not_depend_on_means_and_rotation() -> None:
    x = with_variances(6, 3, 1)
    torch.testing.assert_close(cumulative_variance(x), torch.tensor([0.6, 0.9, 1.0]).double())
    assert components_for(cumulative_variance(x), 0.9) == 2
    assert components_for(cumulative_variance(x), 0.91) == 3
    assert rank_ratio(x) == pytest.approx(2 / 3)
    torch.testing.assert_close(spectrum(x), torch.tensor([1.0, 0.5, 1 / 6]).double().sqrt())


def test_the_variance_agrees_with_torchs_own_pca() -> None:
    x = torch.randn(300, 5).double() @ torch.randn(5, 5).double()
    singular = torch.linalg.svdvals(x - x.mean(0))
    torch.testing.assert_close(cumulative_variance(x), singular.square().cumsum(0) / singular.square().sum())
    torch.testing.assert_close(spectrum(x), singular / singular[0])


def test_the_papers_percentages_are_components_over_channels() -> None:
    one = torch.randn(400, 1) @ torch.randn(1, 24)
    assert rank_ratio(one) == pytest.approx(1 / 24)
    assert f"{rank_ratio(one):.1%}" == "4.2%"


def test_the_entropy_rank_counts_equal_directions() -> None:
    assert entropy_rank(with_variances(1, 1, 1, 1)) == pytest.approx(4)
    assert entropy_rank(torch.randn(50, 1) @ torch.randn(1, 6)) == pytest.approx(1, abs=1e-3)


def test_a_constant_map_has_one_component() -> None:
    assert components_for(cumulative_variance(torch.full((10, 4), 0.5))) == 1


def test_channels_are_compared_by_their_cosine() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 3.0])
    found = channel_similarity(torch.stack((a, 2 * a, -a, b, torch.zeros(3)), 1))
    expected = torch.zeros(5, 5).double()
    expected[:3, :3] = torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]])
    expected[3, 3] = 1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_contrast_is_the_ratio_of_the_means() -> None:
    found = contrast(torch.tensor([[0.8, 0.2], [0.4, 1.0]]))
    assert (found.diagonal, found.off_diagonal, found.ratio) == pytest.approx((0.9, 0.3, 3.0))
    assert contrast(torch.full((3, 3), 0.7)).ratio == pytest.approx(1)
    for wrong in (torch.ones(1, 1), torch.ones(2, 3)):
        with pytest.raises(ValueError, match="square"):
            contrast(wrong)


def test_kernel_alignment_sees_through_rotation_and_scale() -> None:
    a = torch.randn(20, 6).double()
    rotation = torch.linalg.qr(torch.randn(6, 6).double())[0]
    assert kernel_alignment(a, 3 * a @ rotation + 1) == pytest.approx(1)
    assert kernel_alignment(a[:, :1], a[:, 1:2] - (a[:, 1:2] * (a[:, :1] - a[:, :1].mean())).mean()) < 0.5
    assert kernel_alignment(a, torch.ones(20, 2)) == 0


def test_cosines_of_rows() -> None:
    a = torch.tensor([[1.0, 0], [1, 1]])
    half = math.sqrt(0.5)
    torch.testing.assert_close(cosines(a, 2 * a), torch.tensor([[1, half], [half, 1]]).double())


def test_covariances_tell_apart_what_means_cannot() -> None:
    wide, narrow = with_variances(4, 1, 1).float(), with_variances(1, 1, 4).float()
    assert float(cosines(wide.mean(0)[None], narrow.mean(0)[None])) > 0.999
    both = [covariance_descriptor(x)[None] for x in (wide, narrow)]
    assert float(cosines(*both)) < 0.99


@pytest.mark.parametrize("ratios", [(1, 1, 1), (1, 0, 0), (0, 1, 1)])
def test_features_are_the_stages_and_the_model_keeps_its_mode(ratios: tuple[int, int, int]) -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    model = MIRAGE(replace(SMALL, branch_ratios=ratios)).train()
    found = features(model, torch.rand(3, 30, 41))
    assert model.training
    assert [found.stages[name].shape for name in SCALES] == [(32 * 48, 6), (384, 12), (96, 24), (24, 48)]
    assert set(found.attention) == (set(SCALES) if ratios[0] else set())
    assert found.latent.shape == (24, 24)
    torch.testing.assert_close(found.shallow, found.stages["encoder1"])


def test_embeddings_are_those_that_training_compares() -> None:
    from dataclasses import replace

    torch.manual_seed(0)
    model = MIRAGE(replace(SMALL, drop_path=0.0, branch_ratios=(1, 0, 1)))  # no batch statistics
    image = torch.rand(3, 32, 32)
    with torch.no_grad():
        output = model.train()(image[None])
    shallow, latent = embeddings(model, features(model, image))
    torch.testing.assert_close(shallow, output.shallow[0])
    torch.testing.assert_close(latent, output.latent[0])
    with pytest.raises(ValueError, match="no embeddings"):
        embeddings(MIRAGE(replace(SMALL, alignment="none")), features(model, image))
