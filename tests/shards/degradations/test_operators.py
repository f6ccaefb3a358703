"""Every operator: reproducible, bounded, at home in every size; and the figures that its docstring promises."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

import shards.degradations.operators  # noqa: F401  registers the operators
from shards.degradations import convolution, native, resampling
from shards.degradations.bayer import PATTERNS, demosaiced, sites
from shards.degradations.convolution import convolved, line
from shards.degradations.linear_light import to_coded, to_linear
from shards.degradations.normal import standard_normal
from shards.degradations.operator import OPERATORS, Image, Value
from shards.degradations.operators.noise import counted
from shards.degradations.parse import parse_pipelines
from shards.degradations.resampling import FILTERS, resampled
from shards.errors import PipelineError

STRONG: dict[str, Mapping[str, Value]] = {
    "gaussian_blur": {"sigma": 3.0, "sigma_y": 1.0},
    "generalised_gaussian_blur": {"sigma": 3.0, "sigma_y": 1.0, "beta": 0.7},
    "plateau_blur": {"sigma": 3.0, "sigma_y": 1.0, "beta": 2.0},
    "sinc_filter": {"cutoff": 1.0},
    "motion_blur": {"length": 15.0},
    "defocus_blur": {"radius": 5.0},
    "resize": {"scale": 0.25},
    "resize_back": {"scale": 0.5},
    "gaussian_noise": {"sigma": 30.0},
    "poisson_noise": {"photons": 100.0},
    "sensor_noise": {"photons": 200.0},
    "speckle_noise": {"sigma": 50.0},
    "salt_and_pepper": {"amount": 0.1},
    "banding_noise": {"sigma": 10.0},
    "jpeg": {"quality": 10},
    "webp": {"quality": 5},
    "av1": {"quality": 10},
    "h264": {"quantiser": 40},
    "quantise": {"bits": 3},
    "haze": {"beta": 2.0},
    "rain": {"drops": 20.0},
    "raindrops": {"drops": 10.0},
    "snow": {"flakes": 20.0},
    "low_light": {"stops": 3.0},
    "dim_illumination": {"gamma": 2.5},
    "over_exposure": {"stops": 2.0},
    "vignetting": {"angle": 45.0},
    "white_balance": {"red": 1.6, "blue": 0.6},
    "saturation": {"factor": 0.2},
    "chroma_shift": {"x": 3.0, "y": 1.5},
    "chromatic_aberration": {"red": 2.0, "blue": -2.0},
    "demosaicing": {},
    "dead_pixels": {"share": 0.02},
    "moire": {"pitch": 2.7},
}
"""Values at which an operator changes a photograph visibly."""

NEUTRAL: dict[str, Mapping[str, Value]] = {
    "gaussian_blur": {"sigma": 0.0},
    "generalised_gaussian_blur": {"sigma": 0.0, "beta": 0.7},
    "plateau_blur": {"sigma": 0.0, "beta": 2.0},
    "motion_blur": {"length": 0.0},
    "defocus_blur": {"radius": 0.0},
    "resize": {"scale": 1.0},
    "resize_back": {"scale": 1.0},
    "gaussian_noise": {"sigma": 0.0},
    "poisson_noise": {"photons": 100.0, "strength": 0.0},
    "speckle_noise": {"sigma": 0.0},
    "salt_and_pepper": {"amount": 0.0},
    "banding_noise": {"sigma": 0.0},
    "haze": {"beta": 0.0},
    "rain": {"drops": 0.0},
    "raindrops": {"drops": 0.0},
    "snow": {"flakes": 0.0},
    "low_light": {"stops": 0.0, "photons": 0.0},
    "dim_illumination": {"gamma": 1.0},
    "over_exposure": {"stops": 0.0},
    "vignetting": {"angle": 0.0},
    "white_balance": {"red": 1.0, "blue": 1.0},
    "saturation": {"factor": 1.0},
    "chroma_shift": {},
    "chromatic_aberration": {},
    "dead_pixels": {"share": 0.0},
}
"""Values that change nothing."""


def completed(name: str, values: Mapping[str, Value] = {}) -> dict[str, Value]:
    """Values for each parameter: those given, else the defaults, else the middle of the range."""
    return {
        key: values.get(
            key,
            parameter.default
            if parameter.default is not None
            else int((parameter.minimum + parameter.maximum) / 2)
            if parameter.integer
            else (parameter.minimum + parameter.maximum) / 2,
        )
        for key, parameter in OPERATORS[name].parameters.items()
    }


def apply(name: str, image: Image, seed: int = 0, /, **values: Value) -> Image:
    return OPERATORS[name](image, np.random.default_rng(seed), completed(name, values))


def photograph(height: int = 64, width: int = 64) -> Image:
    """Smooth colours with a bright square, a dark line and some texture."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([0.2 + 0.6 * x, 0.3 + 0.4 * y, 0.7 - 0.5 * x * y], 2)
    image += 0.08 * rng.random((height, width, 1))
    image[height // 4 : height // 2, width // 4 : width // 2] = (0.95, 0.9, 0.2)
    image[height // 2 :: 9] *= 0.3
    return image.clip(0, 1).astype(np.float32)


def ends(name: str) -> list[dict[str, Value]]:
    """Each end and word of each parameter, with the others in the middle; and all at one end."""
    parameters = OPERATORS[name].parameters
    choices: dict[str, list[Value]] = {
        key: list(p.words)
        if p.words
        else [int(p.minimum), int(p.maximum)]
        if p.integer
        else [p.minimum, p.maximum]
        for key, p in parameters.items()
    }
    single = [completed(name, {key: value}) for key, values in choices.items() for value in values]
    return [*single, {k: v[0] for k, v in choices.items()}, {k: v[-1] for k, v in choices.items()}]


def test_the_tables_of_this_file_know_every_operator() -> None:
    assert sorted(STRONG) == sorted(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
class TestEveryOperator:
    def test_says_what_it_does_and_what_each_parameter_means(self, name: str) -> None:
        about = OPERATORS[name].about
        assert about[0].isupper()
        assert about[-1] == "."
        for parameter in OPERATORS[name].parameters.values():
            assert parameter.about
            assert parameter.words or parameter.minimum < parameter.maximum
            if parameter.words:
                assert parameter.default in parameter.words
            elif parameter.default is not None:
                assert parameter.minimum <= float(parameter.default) <= parameter.maximum

    def test_gives_the_same_bytes_twice_and_keeps_its_input(self, name: str) -> None:
        image = photograph()
        before = image.tobytes()
        assert apply(name, image, **STRONG[name]).tobytes() == apply(name, image, **STRONG[name]).tobytes()
        assert image.tobytes() == before

    def test_gives_the_same_bytes_for_every_layout_of_the_same_pixels(self, name: str) -> None:
        image = photograph(40, 48)
        turned = np.ascontiguousarray(image.transpose(2, 1, 0)).transpose(2, 1, 0)
        reversed_ = np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
        expected = apply(name, image, **STRONG[name]).tobytes()
        for same in (turned, reversed_):
            assert apply(name, same, **STRONG[name]).tobytes() == expected

    def test_is_finite_and_within_bounds_at_the_ends_of_every_parameter(self, name: str) -> None:
        rng = np.random.default_rng(1)
        noise = rng.random((24, 31, 3), dtype=np.float32)
        for values in ends(name):
            for image in (noise, np.zeros_like(noise), np.ones_like(noise)):
                result = OPERATORS[name].function(
                    image, rng, **values, **({"original": (24, 31)} if OPERATORS[name].needs_original else {})
                )
                assert np.isfinite(result).all(), values  # before the operator's own guard
                guarded = OPERATORS[name](image, rng, values)
                assert guarded.dtype == np.float32
                assert 0 <= guarded.min() <= guarded.max() <= 1

    @pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 500), (64, 64), (7, 1)])
    def test_takes_every_size(self, name: str, size: tuple[int, int]) -> None:
        result = apply(name, photograph(*size), **STRONG[name])
        if "resize" not in name:
            assert result.shape == (*size, 3)

    def test_changes_a_photograph_at_its_strong_values(self, name: str) -> None:
        image = photograph()
        result = apply(name, image, **STRONG[name])
        assert result.shape != image.shape or np.abs(result - image).mean() > 0.002

    def test_leaves_the_image_as_it_is_at_its_neutral_values(self, name: str) -> None:
        if name in NEUTRAL:
            image = photograph()
            np.testing.assert_array_equal(apply(name, image, **NEUTRAL[name]), image)

    def test_reads_each_of_its_parameters(self, name: str) -> None:
        image = photograph()
        base = completed(name, STRONG[name])
        usual = OPERATORS[name](image, np.random.default_rng(0), base).tobytes()
        for key, p in OPERATORS[name].parameters.items():
            others: list[Any] = list(p.words) or [p.minimum, (2 * p.minimum + p.maximum) / 3]
            results = {
                OPERATORS[name](
                    image, np.random.default_rng(0), {**base, key: int(v) if p.integer else v}
                ).tobytes()
                for v in others
            }
            assert results - {usual}, f"{key} changes nothing"


def test_the_same_bytes_come_with_other_instructions_and_threads_and_without_a_compiler() -> None:
    code = """
import hashlib, numpy as np, shards.degradations.operators
from shards.degradations.operator import OPERATORS
image = np.random.default_rng(3).random((48, 40, 3), dtype=np.float32)
total = hashlib.sha256()
for name in sorted(OPERATORS):
    values = {}
    for key, p in OPERATORS[name].parameters.items():
        middle = (p.minimum + p.maximum) / 2
        values[key] = p.default if p.default is not None else int(middle) if p.integer else middle
    total.update(OPERATORS[name](image, np.random.default_rng(1), values).tobytes())
print(total.hexdigest())
"""
    instructions = " ".join(np.show_config(mode="dicts")["SIMD Extensions"]["found"])
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                "OMP_NUM_THREADS": n,
                "OPENBLAS_NUM_THREADS": n,
                "NPY_DISABLE_CPU_FEATURES": without,
                "MIRAGE_NATIVE": compiled,
                "PATH": os.environ["PATH"],  # where the compiler is
                "HOME": os.environ["HOME"],
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n, without, compiled in (("1", "", "1"), ("2", instructions, "0"))
    }
    assert len(answers) == 1


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([(21, 21), (1, 5), (7, 1), (25, 25)]),
    st.booleans(),
)
@settings(deadline=None, max_examples=30)
def test_sums_in_c_have_the_bits_of_numpy(
    height: int, width: int, sides: tuple[int, int], sparse: bool
) -> None:
    assert native.library() is not None, "no compiler"
    rng = np.random.default_rng(height * width)
    image, kernel = (rng.random(size, dtype=np.float32) for size in ((height, width, 3), sides))
    kernel *= rng.random(sides) < (0.1 if sparse else 1)
    for each in (image, image[..., 0]):
        assert convolved(each, kernel).tobytes() == convolution._by_sums(each, kernel).tobytes()
    for filter_, target in itertools.product(FILTERS, (1, 17, 50)):
        weights = resampling._weights(height, target, filter_)
        assert resampling._rows(image, *weights).tobytes() == resampling._summed(image, *weights).tobytes()
        turned = resampling._columns(image.swapaxes(0, 1).copy(), *weights).swapaxes(0, 1)
        assert turned.tobytes() == resampling._summed(image, *weights).tobytes()


def test_a_convolution_by_sums_is_the_one_by_transforms() -> None:
    rng = np.random.default_rng(0)
    image, kernel = rng.random((31, 44, 3), dtype=np.float32), rng.random((9, 15), dtype=np.float32) / 70
    np.testing.assert_allclose(convolved(image, kernel), convolution._by_transforms(image, kernel), atol=2e-6)


def test_normal_deviates_have_mean_variance_and_tails_of_the_normal_distribution() -> None:
    drawn = standard_normal(np.random.default_rng(0), (1000, 1000)).astype(float)
    assert drawn.mean() == pytest.approx(0, abs=0.003)
    assert drawn.std() == pytest.approx(1, abs=0.003)
    assert (drawn**4).mean() == pytest.approx(3, abs=0.03)
    assert (np.abs(drawn) > 3).mean() == pytest.approx(0.0027, rel=0.05)
    assert np.corrcoef(drawn[:, 1:].ravel(), drawn[:, :-1].ravel())[0, 1] == pytest.approx(0, abs=0.004)


# What is documented, measured.


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_linear_light_goes_there_and_back(values: list[float]) -> None:
    coded = np.array(values, np.float32)
    np.testing.assert_allclose(to_coded(to_linear(coded)), coded, atol=2e-6)


def test_linear_light_has_the_values_of_the_standard() -> None:
    table = {0.0: 0.0, 0.04045: 0.0031308, 0.5: 0.2140411, 188 / 255: 0.5028865, 1.0: 1.0}
    np.testing.assert_allclose(to_linear(np.float32([*table])), [*table.values()], atol=2e-6)


@pytest.mark.parametrize(
    "name", ["gaussian_blur", "generalised_gaussian_blur", "plateau_blur", "defocus_blur"]
)
@pytest.mark.parametrize("light", ["linear", "coded"])
def test_a_blur_keeps_the_mean_of_its_light(name: str, light: str) -> None:
    image = photograph()
    change = to_linear if light == "linear" else np.asarray
    blurred = apply(name, image, **STRONG[name], light=light)
    np.testing.assert_allclose(change(blurred).mean((0, 1)), change(image).mean((0, 1)), rtol=2e-5)


def test_an_edge_blurred_in_linear_light_is_the_mean_of_light_and_not_of_grey_levels() -> None:
    edge = np.zeros((32, 32, 3), np.float32)
    edge[:, 16:] = 1
    # A box of three pixels: the last black pixel gets a third of the light.
    linear = apply("motion_blur", edge, length=1.0, light="linear")
    coded = apply("motion_blur", edge, length=1.0, light="coded")
    share = coded[5, 15, 0]
    assert 0.05 < share < 0.5
    np.testing.assert_allclose(linear[5, 15], to_coded(np.float32([share])).item(), atol=1e-5)


def test_a_gaussian_blur_of_a_point_has_its_standard_deviations() -> None:
    point = np.zeros((81, 81, 3), np.float32)
    point[40, 40] = 1
    result = apply("gaussian_blur", point, sigma=4.0, sigma_y=2.0, angle=0.0, light="coded")[..., 0].astype(
        float
    )
    place = np.arange(81) - 40
    assert np.sqrt((result.sum(0) * place**2).sum()) == pytest.approx(4, rel=0.02)
    assert np.sqrt((result.sum(1) * place**2).sum()) == pytest.approx(2, rel=0.02)


def test_angles_turn_clockwise_from_the_right() -> None:
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    for result in (
        apply("motion_blur", point, length=20.0, angle=45.0, light="coded"),
        apply("gaussian_blur", point, sigma=5.0, sigma_y=0.5, angle=45.0, light="coded"),
    ):
        assert result[24, 24, 0] > 0.01  # down and right
        assert result[16, 24, 0] < 1e-4


def test_a_bent_path_has_the_length_of_a_straight_one_but_reaches_less_far() -> None:
    point = np.zeros((81, 81, 3), np.float32)
    point[40, 40] = 1
    straight, bent = (
        apply("motion_blur", point, length=30.0, angle=0.0, bend=bend, light="coded")[..., 0]
        for bend in (0.0, 120.0)
    )
    columns = np.nonzero(straight.sum(0) > 1e-4)[0]
    assert columns.max() - columns.min() == 30
    assert np.nonzero(straight.sum(1) > 1e-4)[0].tolist() == [40]
    assert len(np.nonzero(bent.sum(1) > 1e-4)[0]) > 5


def test_a_disc_out_of_focus_covers_its_area() -> None:
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    result = apply("defocus_blur", point, radius=8.0, light="coded")[..., 0]
    assert 1 / result.max() == pytest.approx(np.pi * 64, rel=0.02)


def test_the_sinc_filter_removes_what_is_above_its_cutoff_and_keeps_what_is_below() -> None:
    x = np.arange(256)
    for frequency, kept in ((0.4, 1.0), (2.2, 0.0)):
        wave = np.broadcast_to((0.5 + 0.3 * np.cos(frequency * x))[None, :, None], (64, 256, 3)).astype(
            np.float32
        )
        result = apply("sinc_filter", wave, cutoff=1.2, size=41)
        assert result[:, 50:-50].std() / wave[:, 50:-50].std() == pytest.approx(kept, abs=0.1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 12), st.integers(0, 12), st.integers(0, 99))
def test_a_convolution_is_the_sum_over_a_mirrored_image(
    h: int, w: int, down: int, right: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image, kernel = rng.random((h, w, 3)), rng.random((2 * down + 1, 2 * right + 1))
    padded = np.pad(image, ((down, down), (right, right), (0, 0)), mode="symmetric")
    expected = sum(
        kernel[-1 - i, -1 - j] * padded[i : i + h, j : j + w]
        for i, j in itertools.product(range(2 * down + 1), range(2 * right + 1))
    )
    result = convolved(image.astype(np.float32), kernel.astype(np.float32))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [0.0, 0.3, 1.0, 7.5, 40.0])
def test_a_line_has_the_sum_1_and_its_length(length: float) -> None:
    kernel = line(length, 0.0)
    place = np.arange(kernel.shape[1]) - kernel.shape[1] // 2
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    used = place[kernel.sum(0) > 0]
    assert used.max() - used.min() == 2 * int(np.ceil(length / 2))


@pytest.mark.parametrize(
    ("filter_", "pillow"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC"), ("lanczos", "LANCZOS")]
)
@pytest.mark.parametrize("size", [(20, 33), (64, 64), (100, 70), (1, 1)])
def test_resizing_agrees_with_pillow(filter_: str, pillow: str, size: tuple[int, int]) -> None:
    plane = photograph()[..., 0]
    expected = PillowImage.fromarray(plane).resize(size[::-1], PillowImage.Resampling[pillow])
    result = resampled(plane[..., None].repeat(3, 2), *size, filter_)
    border = 12 if min(size) > 24 else 0  # Pillow cuts its filters off at the border
    inner = (slice(border, -border or None),) * 2
    tolerance = 1e-4 if border else 0.2
    np.testing.assert_allclose(result[inner][..., 1], np.asarray(expected)[inner], atol=tolerance)


@pytest.mark.parametrize("filter_", FILTERS)
def test_resizing_keeps_a_plain_colour_and_the_place_of_the_image(filter_: str) -> None:
    plain = np.full((30, 40, 3), 0.37, np.float32)
    for size in ((7, 11), (61, 80), (30, 40), (1, 1)):
        np.testing.assert_allclose(resampled(plain, *size, filter_), 0.37, atol=1e-5)
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[None, :, None], (8, 64, 3))
    small = resampled(np.ascontiguousarray(ramp), 8, 16, filter_)
    np.testing.assert_allclose(small + small[:, ::-1], 1, atol=0.04)  # symmetric: no shift


def test_an_area_mean_is_the_mean_of_what_a_pixel_covers() -> None:
    image = photograph(60, 60)
    np.testing.assert_allclose(
        resampled(image, 20, 15, "area"), image.reshape(20, 3, 15, 4, 3).mean((1, 3)), atol=1e-5
    )
    np.testing.assert_allclose(resampled(image, 47, 31, "area").mean((0, 1)), image.mean((0, 1)), atol=1e-5)


def test_resizing_back_is_relative_to_the_size_before_the_pipeline() -> None:
    small = photograph(10, 20)
    values = completed("resize_back", {"scale": 0.5})
    result = OPERATORS["resize_back"](small, np.random.default_rng(0), values, (100, 64))
    assert result.shape == (50, 32, 3)


GREY = np.full((200, 200, 3), 0.5, np.float32)


def residual(name: str, image: Image = GREY, **values: Value) -> Image:
    return apply(name, image, **values) - image


@pytest.mark.parametrize("channels", ["colour", "grey"])
def test_gaussian_noise_has_its_standard_deviation(channels: str) -> None:
    noise = residual("gaussian_noise", sigma=20.0, channels=channels)
    assert noise.std() * 255 == pytest.approx(20, rel=0.02)
    assert abs(noise.mean()) < 0.002
    assert np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1] == pytest.approx(
        float(channels == "grey"), abs=0.02
    )


@pytest.mark.parametrize("channels", ["colour", "grey"])
def test_shot_noise_grows_with_the_root_of_the_light(channels: str) -> None:
    for level in (0.1, 0.6):
        noise = residual("poisson_noise", np.full_like(GREY, level), photons=1000.0, channels=channels)
        assert noise.std() == pytest.approx(np.sqrt(level / 1000), rel=0.03)
    half = residual("poisson_noise", photons=1000.0, strength=0.5)
    assert half.std() == pytest.approx(0.5 * np.sqrt(0.5 / 1000), rel=0.03)


@pytest.mark.parametrize("mean", [0.3, 5.0, 15.9, 16.0, 40.0, 1000.0])
def test_counts_have_mean_variance_and_skewness_of_the_poisson_distribution(mean: float) -> None:
    counts = counted(np.full(300_000, mean, np.float32), np.random.default_rng(2)).astype(float)
    assert counts.min() >= 0
    assert np.array_equal(counts, np.rint(counts))
    assert counts.mean() == pytest.approx(mean, rel=0.01)
    assert counts.var() == pytest.approx(mean, rel=0.02)
    skewness = ((counts - counts.mean()) ** 3).mean() / counts.std() ** 3
    assert skewness == pytest.approx(mean**-0.5, abs=0.03)


def test_sensor_noise_has_the_variance_of_photons_and_electrons_in_linear_light() -> None:
    level, photons, read = 0.2, 500.0, 6.0
    image = np.full_like(GREY, to_coded(np.float32([level])).item())
    noisy = apply("sensor_noise", image, photons=photons, read=read, red=2.0, blue=1.0, mosaic="none")
    noise = to_linear(noisy) - level
    for channel, gain in ((0, 2.0), (1, 1.0), (2, 1.0)):
        raw = level / gain * photons  # electrons of the pixel
        expected = np.sqrt(raw + read**2) / photons * gain
        assert noise[..., channel].std() == pytest.approx(expected, rel=0.03)


def test_noise_behind_bayer_filters_is_correlated_between_neighbours() -> None:
    def correlation(mosaic: str) -> float:
        noise = residual("sensor_noise", photons=300.0, mosaic=mosaic)[..., 0]
        return float(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1])

    assert abs(correlation("none")) < 0.02
    assert correlation("bayer") > 0.3


def test_speckle_noise_is_proportional_to_the_value() -> None:
    for level in (0.2, 0.6):
        noise = residual("speckle_noise", np.full_like(GREY, level), sigma=25.5)
        assert noise.std() == pytest.approx(0.1 * level, rel=0.02)


def test_salt_and_pepper_replace_their_share() -> None:
    result = apply("salt_and_pepper", GREY, amount=0.2, salt=0.25)
    assert (result == 1).mean() == pytest.approx(0.05, abs=0.005)
    assert (result == 0).mean() == pytest.approx(0.15, abs=0.005)
    grey = apply("salt_and_pepper", GREY, amount=0.2, channels="grey")
    assert (grey.min(2) == grey.max(2)).all()


@pytest.mark.parametrize(("direction", "axis"), [("rows", 1), ("columns", 0)])
def test_banding_is_one_error_per_line(direction: str, axis: int) -> None:
    noise = residual("banding_noise", sigma=10.0, direction=direction)
    assert noise.std(axis).max() < 1e-6
    assert noise.mean(axis).std() * 255 == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("chroma", ["yuv420", "yuv422", "yuv444"])
def test_jpeg_is_libjpeg_turbo_on_rounded_grey_levels(chroma: str) -> None:
    image = photograph()
    grey = np.rint(image * 255).astype(np.uint8)
    stored = imagecodecs.jpeg8_encode(grey, level=40, subsampling=chroma[3:])
    expected = imagecodecs.jpeg8_decode(stored) / np.float32(255)
    np.testing.assert_array_equal(apply("jpeg", image, quality=40, chroma=chroma), expected)


@pytest.mark.parametrize("codec", ["jpeg", "webp", "av1"])
def test_a_codec_loses_less_at_higher_quality(codec: str) -> None:
    image = photograph()
    losses = [float(np.abs(apply(codec, image, quality=quality) - image).mean()) for quality in (5, 50, 95)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.02


def test_a_frame_of_a_video_is_coarser_with_its_quantiser_and_keeps_its_place() -> None:
    image = photograph(47, 64)
    losses = [
        float(np.abs(apply("h264", image, quantiser=quantiser) - image).mean()) for quantiser in (5, 30, 51)
    ]
    assert losses == sorted(losses)
    assert losses[0] < 0.025  # colours at half the resolution, and 8 bits
    shifted = np.abs(apply("h264", image, quantiser=5)[:, 4:] - image[:, :-4]).mean()
    assert shifted > 2 * losses[0]
    intra, inter = (apply("h264", image, quantiser=30, frames=frames) for frames in (1, 4))
    assert (intra != inter).any()


def test_an_operator_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PipelineError) as caught:
        parse_pipelines({"a": [{"h264": {"quantiser": 30}}]})
    ((key, message),) = caught.value.problems
    assert key == ("a", "0", "h264")
    assert "pip install 'mirage-orchestrator[video]'" in message


@pytest.mark.parametrize("dither", ["none", "ordered", "noise"])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_quantising_leaves_its_levels_and_dithering_keeps_the_mean(bits: int, dither: str) -> None:
    image = np.full((64, 64, 3), 0.3, np.float32)
    result = apply("quantise", image, bits=bits, dither=dither)
    steps = result * (2**bits - 1)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert np.abs(result - image).max() <= (0.5 if dither == "none" else 1) / (2**bits - 1) + 1e-6
    if dither != "none":
        assert result.mean() == pytest.approx(0.3, abs=0.01)


def test_quantising_to_8_bits_keeps_an_8_bit_image() -> None:
    image = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(16, 16, 1).repeat(3, 2)
    np.testing.assert_array_equal(apply("quantise", image, bits=8), image)


@pytest.mark.parametrize("light", ["linear", "coded"])
def test_haze_follows_the_law_of_koschmieder(light: str) -> None:
    """Two scenes behind the same haze give its transmission and airlight at every pixel."""
    change = to_linear if light == "linear" else np.asarray
    dark, bright = (np.full((64, 64, 3), value, np.float32) for value in (0.1, 0.7))
    seen = [change(apply("haze", image, beta=1.5, airlight=0.8, light=light)) for image in (dark, bright)]
    through = (seen[1] - seen[0]) / (change(bright) - change(dark))
    assert through.min() == pytest.approx(np.exp(-1.5), rel=1e-3)
    assert through.max() == pytest.approx(1, rel=1e-3)
    assert through[-1].mean() > through[0].mean()  # the ground is near
    air = change(np.float32([0.8])).item()
    np.testing.assert_allclose(seen[0], change(dark) * through + air * (1 - through), atol=1e-4)


def test_rain_only_adds_light_and_snow_only_moves_towards_white() -> None:
    image = photograph(96, 96)
    for name in ("rain", "snow"):
        difference = apply(name, image, **STRONG[name]) - image
        assert difference.min() > -1e-4
        assert (difference > 0.05).mean() > 0.02


def test_rain_falls_along_its_angle() -> None:
    streaks = residual("rain", np.full((128, 128, 3), 0.2, np.float32), drops=5.0, angle=0.0, length=30.0)[
        ..., 0
    ]
    assert np.abs(np.diff(streaks, axis=0)).mean() < 0.4 * np.abs(np.diff(streaks, axis=1)).mean()


def test_drops_on_the_lens_change_the_places_of_drops_only() -> None:
    image = photograph(128, 128)
    changed = (apply("raindrops", image, drops=3.0, radius=12.0) != image).any(2)
    assert 0.02 < changed.mean() < 0.6


def test_a_stop_halves_the_light_and_another_doubles_it() -> None:
    image = np.full((8, 8, 3), 0.5, np.float32)
    light = to_linear(image)
    np.testing.assert_allclose(
        to_linear(apply("low_light", image, stops=1.0, photons=0.0)), light / 2, rtol=1e-4
    )
    np.testing.assert_allclose(to_linear(apply("over_exposure", image, stops=1.0)), light * 2, rtol=1e-4)


def test_low_light_is_noisier_in_linear_light_by_the_photons_that_are_left() -> None:
    image = np.full((200, 200, 3), 0.8, np.float32)
    left = to_linear(image).mean() / 8
    noisy = to_linear(apply("low_light", image, stops=3.0, photons=2000.0, read=0.0))
    assert noisy.std() == pytest.approx(np.sqrt(left / 2000), rel=0.05)


def test_dim_illumination_keeps_lamps_and_dims_shadows() -> None:
    image = np.full((120, 120, 3), 0.2, np.float32)
    image[:60] = 1
    result = apply("dim_illumination", image, gamma=2.0)
    np.testing.assert_allclose(result[:40], 1, atol=1e-5)
    np.testing.assert_allclose(result[80:], 0.2 * 0.2, atol=1e-5)


def test_vignetting_follows_the_fourth_power_of_the_cosine() -> None:
    image = np.full((65, 65, 3), 0.9, np.float32)
    light = to_linear(apply("vignetting", image, angle=30.0)) / to_linear(image)
    assert light[32, 32, 0] == pytest.approx(1, abs=1e-4)
    assert light[0, 0, 0] == pytest.approx(np.cos(np.radians(30)) ** 4, rel=1e-3)


def test_white_balance_multiplies_light_and_saturation_0_is_grey() -> None:
    image = np.full((4, 4, 3), 0.4, np.float32)
    result = to_linear(apply("white_balance", image, red=1.5, blue=0.5)) / to_linear(image)
    np.testing.assert_allclose(result[0, 0], [1.5, 1, 0.5], rtol=1e-3)
    grey = apply("saturation", photograph(), factor=0.0)
    assert np.ptp(grey, axis=2).max() < 1e-6


def test_a_chroma_shift_moves_colours_by_its_pixels_and_keeps_the_luma() -> None:
    image = np.full((20, 20, 3), 0.5, np.float32)
    image[10, 10] = (0.6, 0.5, 0.4)
    result = apply("chroma_shift", image, x=3.0, y=-2.0)
    difference = np.ptp(result, axis=2)
    assert np.unravel_index(difference.argmax(), difference.shape) == (8, 13)


def test_chromatic_aberration_moves_red_outwards_and_leaves_green() -> None:
    image = np.zeros((101, 101, 3), np.float32)
    image[:, 90] = 1
    result = apply("chromatic_aberration", image, red=2.5, light="coded")
    np.testing.assert_array_equal(result[..., 1], image[..., 1])
    np.testing.assert_array_equal(result[..., 2], image[..., 2])
    assert int(result[50, :, 0].argmax()) == 91


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (1, 5), (5, 4)])
def test_demosaicing_keeps_what_each_pixel_saw_and_every_plain_colour(
    pattern: str, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((*size, 3), dtype=np.float32)
    seen = sites(*size, pattern)
    assert (seen.sum(2) == 1).all()
    np.testing.assert_array_equal(demosaiced(image, pattern)[seen], image[seen])
    plain = np.broadcast_to(np.float32([0.2, 0.5, 0.8]), (*size, 3))
    np.testing.assert_allclose(demosaiced(plain, pattern), plain, atol=1e-6)


def test_dead_pixels_are_white_or_black_where_the_sensor_saw_them() -> None:
    result = apply("dead_pixels", GREY, share=0.01, hot=0.25)
    seen = sites(200, 200)
    values = result[seen]
    assert np.isclose(values, 1, atol=1e-5).mean() == pytest.approx(0.0025, abs=0.001)
    assert np.isclose(values, 0, atol=1e-5).mean() == pytest.approx(0.0075, abs=0.0015)
    assert (result != GREY).any(2).mean() < 0.12  # each spreads to its neighbours only


def test_moire_beats_at_the_difference_of_the_two_grids_and_keeps_the_mean() -> None:
    image = np.full((128, 128, 3), 0.5, np.float32)
    pitch = 2 * 64 / 63  # with Bayer's period of 2: one beat in 128 pixels
    result = to_linear(apply("moire", image, pitch=pitch, angle=0.0, strength=0.4))
    assert result.mean() == pytest.approx(to_linear(image).mean(), rel=0.03)
    red = np.abs(np.fft.rfft(result[:, :, 0].mean(0)))
    assert int(red[1:20].argmax()) + 1 == 1


@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise", "low_light"])
def test_values_that_were_recorded_before_an_operator_had_a_light_give_the_same_pixels(name: str) -> None:
    operator = OPERATORS[name]
    values = {key: 2 if each.default is None else each.default for key, each in operator.parameters.items()}
    before = {key: value for key, value in values.items() if key != "light"}
    image = photograph(12, 10)
    now, then = (operator(image, np.random.default_rng(0), each) for each in (values, before))
    assert now.tobytes() == then.tobytes()
