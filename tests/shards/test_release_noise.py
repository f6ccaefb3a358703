"""The release's noise is one sequence of numpy's global generator, whoever asks for which image first."""

from __future__ import annotations

import numpy as np
import pytest

from shards import release_noise
from shards.release_noise import ReleaseNoise

SIZES = [("a", (33, 49)), ("b", (16, 15)), ("c", (41, 31))]


def as_the_script_draws() -> dict[tuple[str, int], np.ndarray]:
    """Seed once, then every sigma over all images."""
    np.random.seed(0)
    return {
        (name, sigma): np.clip(128 + np.random.randn(*size, 3) * sigma, 0, 255).astype(np.uint8)
        for sigma in (15, 25, 50)
        for name, size in SIZES
    }


@pytest.mark.parametrize("mark", [2**21, 1000])
@pytest.mark.parametrize("backwards", [False, True])
def test_every_image_has_the_scripts_noise_in_any_order(
    mark: int, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_noise, "_STATE_INTERVAL", mark)
    expected = as_the_script_draws()
    noise, sizes = ReleaseNoise(SIZES), dict(SIZES)
    for name, sigma in sorted(expected, reverse=backwards):
        clean = np.full((*sizes[name], 3), 128, np.uint8)
        np.testing.assert_array_equal(noise.add(clean, name, sigma), expected[name, sigma])
