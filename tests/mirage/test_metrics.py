import itertools
import math

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mirage.metrics import PROTOCOLS, centre_crop, measure, psnr, ssim


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    clean = torch.rand(shape)
    return (clean + 0.1 * torch.randn(shape)), clean


@pytest.mark.parametrize("size", [(7, 7), (33, 50), (64, 48)])
def test_psnr_and_ssim_equal_skimage(size: tuple[int, int]) -> None:
    restored, clean = pair(3, *size)
    restored = restored.clamp(0, 1)
    arrays = clean.double().permute(1, 2, 0).numpy(), restored.double().permute(1, 2, 0).numpy()
    assert psnr(restored, clean).item() == pytest.approx(
        peak_signal_noise_ratio(*arrays, data_range=1), abs=1e-9
    )
    assert ssim(restored, clean).item() == pytest.approx(
        structural_similarity(*arrays, data_range=1, channel_axis=2), abs=1e-9
    )


def test_the_release_protocol_equals_skimage_on_its_crop() -> None:
    restored, clean = pair(3, 45, 70)
    cropped = [x.clamp(0, 1)[:, 6:38, 3:67].permute(1, 2, 0).numpy() for x in (clean, restored)]
    measured = measure(restored, clean, "rgb-crop16")
    assert float(measured["psnr"]) == pytest.approx(peak_signal_noise_ratio(*cropped, data_range=1), abs=1e-5)
    expected = structural_similarity(*cropped, data_range=1, channel_axis=2)
    assert float(measured["ssim"]) == pytest.approx(expected, abs=1e-6)


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """A coloured photograph and a disturbed copy, (3, 301, 203): more rows than SSIM takes at once."""
    clean = torch.from_numpy(astronaut()[100:401, 60:263].copy()).permute(2, 0, 1).float() / 255
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return (clean + 0.05 * noise).clamp(0, 1), clean


def reference(protocol: str) -> tuple[float, float]:
    """PSNR and SSIM by scikit-image, with the protocol's steps written out in numpy float64."""
    restored, clean = (x.double().permute(1, 2, 0).numpy() for x in photographs())
    options: dict[str, object] = {"data_range": 1.0}
    if protocol.startswith("rgb-crop16"):
        restored, clean = (x[6:294, 5:197] for x in (restored, clean))
    if protocol in ("rgb8", "y8", "y-histoformer"):
        restored, clean = ((x * 255).round() for x in (restored, clean))
        options["data_range"] = 255.0
    if protocol == "y8":
        restored, clean = (x @ np.array([65.481, 128.553, 24.966]) / 255 + 16 for x in (restored, clean))
    if protocol == "y-histoformer":  # RGB weights on an array that is BGR
        restored, clean = (
            x[..., ::-1] @ np.array([65.481, 128.553, 24.966]) / 255 + 16 for x in (restored, clean)
        )
        options["win_size"] = 11
    gaussian = {"gaussian_weights": True, "sigma": 1.5}
    options |= {
        "rgb-crop16-gaussian": gaussian,
        "rgb8": {**gaussian, "use_sample_covariance": False},
        "y8": {**gaussian, "use_sample_covariance": False},
    }.get(protocol, {})
    found = peak_signal_noise_ratio(clean, restored, data_range=options["data_range"])
    axis = None if protocol.startswith("y") else 2
    return float(found), float(structural_similarity(clean, restored, channel_axis=axis, **options))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_equals_its_reference_to_a_millionth(protocol: str) -> None:
    measured = measure(*photographs(), protocol)
    expected_psnr, expected_ssim = reference(protocol)
    assert float(measured["psnr"]) == pytest.approx(expected_psnr, abs=1e-6)
    assert float(measured["ssim"]) == pytest.approx(expected_ssim, abs=1e-6)


def test_no_protocol_passes_for_its_neighbour() -> None:
    """Any two protocols differ by more than the tolerance above in PSNR or in SSIM: each test could fail."""
    found = {name: measure(*photographs(), name) for name in PROTOCOLS}
    for one, other in itertools.combinations(PROTOCOLS, 2):
        apart = [abs(float(found[one][metric] - found[other][metric])) for metric in ("psnr", "ssim")]
        assert max(apart) > 3e-6, f"{one} and {other} give the same numbers"


def test_swapping_red_and_blue_is_what_histoformer_differs_by() -> None:
    swapped = measure(*(x.flip(0) for x in photographs()), "y8")["psnr"]
    torch.testing.assert_close(measure(*photographs(), "y-histoformer")["psnr"], swapped)


def test_a_batch_gives_one_number_per_image() -> None:
    restored, clean = pair(3, 3, 16, 16)
    for protocol in PROTOCOLS:
        batch = measure(restored, clean, protocol)
        for i in range(3):
            single = measure(restored[i], clean[i], protocol)
            for name, value in single.items():
                assert value.shape == ()
                assert value.dtype == torch.float64
                torch.testing.assert_close(batch[name][i], value)


def test_equal_images_are_infinitely_good() -> None:
    clean = torch.rand(3, 16, 16)
    assert psnr(clean, clean).item() == math.inf
    assert ssim(clean, clean).item() == pytest.approx(1)


def test_the_crop_is_centred_and_odd_pixels_go_last() -> None:
    image = torch.arange(19.0).expand(3, 19, 19)
    assert centre_crop(image, 16)[0, 0, 0] == 1


@pytest.mark.parametrize(
    ("restored", "clean", "message"),
    [
        (torch.rand(3, 16, 16), torch.rand(3, 16, 17), "restored"),
        (torch.rand(1, 16, 16), torch.rand(1, 16, 16), "restored"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), torch.rand(3, 16, 16), "uint8"),
        (torch.rand(3, 8, 30), torch.rand(3, 8, 30), "multiples of 16"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(
    restored: torch.Tensor, clean: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(restored, clean, "rgb-crop16")


def test_an_unknown_protocol_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="rgb-crop16"):
        measure(torch.rand(3, 16, 16), torch.rand(3, 16, 16), "y")


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="7 pixels"):
        ssim(torch.rand(3, 6, 9), torch.rand(3, 6, 9))


def test_an_unknown_window_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="gaussian11-sample"):
        ssim(torch.rand(3, 16, 16), torch.rand(3, 16, 16), "gaussian9")  # type: ignore[arg-type]
