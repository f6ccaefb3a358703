"""Noise: Gaussian, truncated as the release does, and a function of (seed, key, pixel) alone."""

from __future__ import annotations

import pytest
import torch

from shards.noise import add_noise


def grey(batch: int, level: int = 128, size: int = 96) -> torch.Tensor:
    return torch.full((batch, 3, size, size), level, dtype=torch.uint8)


def test_it_is_gaussian_with_the_asked_deviation():
    noise = add_noise(grey(4), torch.tensor([1.0, 15.0, 25.0, 50.0]), torch.arange(4), 0, rule="float") - 128
    for index, sigma in enumerate((1.0, 15.0, 25.0, 50.0)):
        z = (noise[index] / sigma).double().flatten()
        n = len(z)
        assert abs(z.mean()) < 5 / n**0.5
        assert abs(z.std() - 1) < 5 / (2 * n) ** 0.5
        assert abs((z**3).mean()) < 5 * (15 / n) ** 0.5
        assert abs((z**4).mean() - 3) < 5 * (96 / n) ** 0.5
        ordered, levels = z.sort().values, (torch.arange(n) + 0.5) / n
        distance = (torch.special.ndtr(ordered) - levels).abs().max()  # Kolmogorov-Smirnov, 99.99 %
        assert distance < 2.23 / n**0.5


def test_pixels_channels_samples_and_seeds_are_unrelated():
    one = add_noise(grey(2), torch.full((2,), 25.0), torch.tensor([5, 6]), 0, rule="float")
    other = add_noise(grey(2), torch.full((2,), 25.0), torch.tensor([5, 6]), 1, rule="float")

    def unrelated(a: torch.Tensor, b: torch.Tensor) -> None:
        pair = torch.stack([a.flatten(), b.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 5 / pair.shape[1] ** 0.5

    unrelated(one[0], one[1])
    unrelated(one[0], other[0])
    unrelated(one[0, 0], one[0, 1])
    unrelated(one[0, :, :, :-1], one[0, :, :, 1:])
    unrelated(one[0, :, :-1], one[0, :, 1:])


def test_a_sample_s_noise_does_not_depend_on_its_batch():
    clean = torch.randint(0, 256, (5, 3, 33, 47), dtype=torch.uint8, generator=torch.manual_seed(0))
    sigma, keys = torch.tensor([15.0, 25.0, 50.0, 0.0, 25.0]), torch.tensor([9, 2**40, 3, 4, 0])
    together = add_noise(clean, sigma, keys, 7)
    for index in range(5):
        alone = add_noise(clean[index : index + 1], sigma[index : index + 1], keys[index : index + 1], 7)
        assert torch.equal(alone[0], together[index])


def test_memory_layout_changes_nothing():
    clean = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    sigma, keys = torch.tensor([25.0, 25.0]), torch.tensor([1, 2])
    rows = clean.contiguous(memory_format=torch.channels_last)
    assert torch.equal(add_noise(clean, sigma, keys, 0), add_noise(rows, sigma, keys, 0))


def test_sigma_zero_changes_nothing():
    clean = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    assert torch.equal(add_noise(clean, torch.zeros(1), torch.tensor([3]), 0), clean)


def test_values_are_clipped_and_truncated_not_rounded():
    sigma, keys = torch.tensor([25.0]), torch.tensor([11])
    exact = add_noise(grey(1), sigma, keys, 0, rule="float")
    assert torch.equal(add_noise(grey(1), sigma, keys, 0), exact.clamp(0, 255).floor().to(torch.uint8))
    assert (add_noise(grey(1), sigma, keys, 0).float() - exact).mean() == pytest.approx(-0.5, abs=0.02)
    for level in (0, 255):
        noisy = add_noise(grey(1, level), sigma, keys, 0)
        assert 0.45 < (noisy == level).float().mean() < 0.55  # half the noise points outwards


def test_known_values_do_not_drift():
    """Every number ever measured with a seed rests on these."""
    noisy = add_noise(grey(1, size=2), torch.tensor([25.0]), torch.tensor([123456789]), 42)
    assert noisy.flatten().tolist() == [143, 109, 138, 114, 134, 134, 98, 94, 141, 137, 90, 137]
