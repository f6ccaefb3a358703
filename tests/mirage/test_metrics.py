import math

import pytest
import torch
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
        measure(torch.rand(3, 16, 16), torch.rand(3, 16, 16), "y8")


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="7 pixels"):
        ssim(torch.rand(3, 6, 9), torch.rand(3, 6, 9))
