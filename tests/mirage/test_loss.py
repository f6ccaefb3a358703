import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mirage import Output
from mirage.collective import BatchShare
from mirage.loss import LossWeights, fourier_distance, restoration_loss
from mirage.spd import SPDHead, covariance, info_nce


def unit(rows: int) -> Tensor:
    return F.normalize(torch.randn(rows, 16, dtype=torch.float64), dim=1)


@pytest.fixture
def case() -> tuple[Output, Tensor]:
    torch.manual_seed(0)
    clean = torch.rand(4, 3, 16, 24, dtype=torch.float64)
    return Output(clean + 0.1 * torch.randn_like(clean), unit(4), unit(4)), clean


def test_the_total_is_the_releases_sum(case: tuple[Output, Tensor]) -> None:
    output, clean = case
    a, b = torch.fft.rfft2(output.image), torch.fft.rfft2(clean)
    spectrum = F.l1_loss(torch.stack((a.real, a.imag), -1), torch.stack((b.real, b.imag), -1))
    contrast = F.cross_entropy(output.shallow @ output.latent.T / 0.1, torch.arange(4))
    expected = F.l1_loss(output.image, clean) + 0.1 * spectrum + 0.01 * contrast
    loss = restoration_loss(output, clean, LossWeights())
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    assert list(loss.terms()) == ["total", "l1", "fourier", "spd"]
    torch.testing.assert_close(loss.fourier, spectrum)


def test_a_term_of_weight_zero_is_not_computed(case: tuple[Output, Tensor]) -> None:
    output, clean = case
    poisoned = Output(output.image, torch.full_like(output.shallow, torch.nan), None)
    loss = restoration_loss(poisoned, clean, LossWeights(fourier=0.0, spd=0.0))
    assert loss.total == loss.l1 > 0
    assert loss.fourier == loss.spd == 0


def test_shares_add_up_to_the_whole(case: tuple[Output, Tensor]) -> None:
    output, clean = case
    weights = LossWeights(spd=0.0)
    whole = restoration_loss(output, clean, weights).total
    parts = [
        restoration_loss(
            Output(output.image[rows], None, None), clean[rows], weights, BatchShare(rows.start, 4)
        ).total
        for rows in (slice(0, 3), slice(3, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_the_spd_term_asks_for_training_mode(case: tuple[Output, Tensor]) -> None:
    output, clean = case
    with pytest.raises(ValueError, match="training mode"):
        restoration_loss(Output(output.image, None, None), clean, replace(LossWeights(), spd=0.05))


def test_the_spectrum_is_fp32_under_autocast() -> None:
    clean = torch.rand(1, 3, 8, 8)
    restored = clean.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = fourier_distance(restored, clean)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, fourier_distance(restored.float(), clean))


def test_covariance_matches_torch_cov() -> None:
    x = torch.randn(2, 50, 5, dtype=torch.float64)
    expected = torch.stack([torch.cov(image.T) for image in x]) + 1e-5 * torch.eye(5)
    torch.testing.assert_close(covariance(x), expected)


def test_covariance_stays_positive_definite_under_autocast() -> None:
    flat = torch.randn(1, 4096, 3) @ torch.randn(3, 12)  # rank 3 in 12 channels
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = covariance(flat)
    assert found.dtype == torch.float32
    assert torch.linalg.eigvalsh(found.double()).min() > 0


def test_embeddings_have_unit_length_and_ignore_the_mean() -> None:
    head = SPDHead(6, 4, 16).double()
    x = torch.rand(3, 8, 8, 6, dtype=torch.float64)
    embedded = head(x)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(head(x + 5), embedded)


def test_info_nce_starts_at_chance_and_rewards_matches() -> None:
    torch.manual_seed(0)
    same = F.normalize(torch.ones(8, 16), dim=1)
    assert info_nce(same, same, 0.1).item() == pytest.approx(math.log(8), rel=1e-6)
    apart = torch.eye(8)
    assert info_nce(apart, apart, 0.1) < 0.01 < info_nce(apart, apart.roll(1, 0), 0.1)
