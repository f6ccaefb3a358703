"""The presets: published syntheses, with the frequencies and orders of their sources."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from shards.degradations.linear_light import to_coded, to_linear
from shards.degradations.parse import parse_pipelines
from shards.degradations.pipeline import Pipeline
from shards.degradations.presets import PRESETS
from shards.degradations.resampling import resampled
from shards.degrade import degrade
from shards.sample import CDD11
from tests.shards.degradations.test_operators import photograph

PIPELINES = parse_pipelines(PRESETS)
DRAWS = 1500


def drawn(name: str) -> list[list[str]]:
    """Names of the operators in many draws."""
    pipeline = PIPELINES[name]
    return [[each.operator.name for each in pipeline.draw(f"key {number}")] for number in range(DRAWS)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_degrades_every_image_alike_under_one_key_and_otherwise_under_another(name: str) -> None:
    image = np.rint(photograph(48, 40) * 255).astype(np.uint8)
    first, second, other = (PIPELINES[name].degrade(image, key) for key in ("a", "a", "b"))
    assert first.shape == image.shape
    assert first.tobytes() == second.tobytes()
    assert (first.tobytes() == other.tobytes()) == name.startswith("swinir_jpeg")  # which draw nothing


@pytest.mark.parametrize("name", PRESETS)
def test_a_job_uses_a_preset_by_its_name(name: str) -> None:
    used = parse_pipelines({"mine": [{"use": name}]})["mine"]
    assert isinstance(used, Pipeline)
    assert [each.operator.name for each in used.draw("k")]


def test_cdd11_has_its_eleven_folders() -> None:
    assert {f"cdd11_{folder}" for folder in CDD11} == {name for name in PRESETS if name.startswith("cdd11")}


@pytest.mark.parametrize("folder", [folder for folder in CDD11 if folder not in ("low", "haze")])
def test_cdd11s_presets_are_about_as_strong_as_the_physics_for_packed_data(folder: str) -> None:
    """Those have the PSNR of the published set; low light and haze alone are another model there."""
    image = np.rint(photograph(96, 96) * 255).astype(np.uint8)

    def psnr(results: list[np.ndarray]) -> float:
        return float(
            10 * np.log10(255**2 / np.mean([np.square(r.astype(float) - image).mean() for r in results]))
        )

    ours = psnr([PIPELINES[f"cdd11_{folder}"].degrade(image, f"{number}") for number in range(12)])
    theirs = psnr([degrade(image, CDD11[folder], 0, f"{number}") for number in range(12)])
    assert ours == pytest.approx(theirs, abs=3)


@pytest.mark.parametrize(
    ("name", "scale"), [("real_esrgan", 1), ("real_esrgan_x2plus", 2), ("real_esrgan_x4plus", 4)]
)
def test_real_esrgan_has_the_frequencies_of_its_options(name: str, scale: int) -> None:
    draws = drawn(name)
    blurs = Counter(names[0] for names in draws)
    assert blurs["gaussian_blur"] / DRAWS == pytest.approx(0.9 * 0.7, abs=0.04)
    assert blurs["generalised_gaussian_blur"] / DRAWS == pytest.approx(0.9 * 0.15, abs=0.03)
    assert blurs["plateau_blur"] / DRAWS == pytest.approx(0.9 * 0.15, abs=0.03)
    assert blurs["sinc_filter"] / DRAWS == pytest.approx(0.1, abs=0.03)
    assert np.mean([names.count("jpeg") for names in draws]) == 2
    assert np.mean(["resize" in names for names in draws]) == pytest.approx(0.9, abs=0.03)
    assert np.mean([names[-1] == "jpeg" for names in draws]) == pytest.approx(0.5, abs=0.04)
    noises = Counter(each for names in draws for each in names if each.endswith("noise"))
    assert noises["gaussian_noise"] / noises.total() == pytest.approx(0.5, abs=0.04)
    backs = [
        each.values["scale"]
        for number in range(50)
        for each in PIPELINES[name].draw(f"{number}")
        if each.operator.name == "resize_back"
    ]
    assert 0.3 / scale <= min(backs) < max(backs) <= 1.2 / scale  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["bsrgan", "bsrgan_x2"])
def test_bsrgan_shuffles_all_orders_in_which_the_last_resize_follows_the_first(name: str) -> None:
    places = Counter()
    first_noise = 0
    for names in drawn(name):
        assert names[-1] == "jpeg"
        kinds = [each for each in names[:-1] if each != "jpeg"]  # which is left out at times
        first = min(kinds.index(each) for each in ("resize",) if each in kinds)
        last = kinds.index("resize_back")
        assert first < last
        # Without the blur that belongs to the nearest pixel's resize: places among blur, blur, noise.
        if kinds[first - 1 : first] != ["gaussian_blur"] or kinds.count("gaussian_blur") == 2:
            places[first, last] += 1
        first_noise += kinds[0] == "gaussian_noise"
    # Of five in a random order with the two resizes in order, ten pairs of places are equally frequent.
    assert set(places) >= {(a, b) for a in range(5) for b in range(a + 1, 5)}
    assert first_noise / DRAWS == pytest.approx(1 / 5, abs=0.04)


def test_bsrgan_x4_ends_at_a_quarter_of_the_size() -> None:
    ends = [
        [
            each.values["scale"]
            for each in PIPELINES["bsrgan_x4"].draw(f"{n}")
            if each.operator.name == "resize_back"
        ]
        for n in range(40)
    ]
    assert ends == [[0.25]] * 40


def test_fbcnn_and_gfpgan_have_the_figures_of_their_code() -> None:
    qualities = Counter(PIPELINES["fbcnn"].draw(f"key {n}")[0].values["quality"] for n in range(DRAWS))
    tens = sum(qualities[quality] for quality in range(10, 61, 10)) / DRAWS
    assert tens == pytest.approx(0.75 + 0.25 * 6 / 89, abs=0.04)
    assert (min(qualities), max(qualities)) == (8, 96)
    draws = [PIPELINES["gfpgan"].draw(f"key {n}") for n in range(DRAWS)]
    scales = [1 / float(each[1].values["scale"]) for each in draws]
    assert np.mean(scales) == pytest.approx(4.4, abs=0.15)
    assert 0.8 <= min(scales) < max(scales) <= 8
    assert all(
        [each.operator.name for each in one][2:5] == ["gaussian_noise", "jpeg", "resize_back"]
        for one in draws
    )


def test_no_two_presets_are_the_same() -> None:
    digests = [PIPELINES[name].steps.plain() for name in PRESETS]
    assert all(a != b for a, b in pairwise(sorted(map(str, digests))))


@pytest.mark.parametrize("name", [name for name in PRESETS if "esrgan" in name or "bsrgan" in name])
def test_no_resize_of_a_preset_displaces_the_image(name: str) -> None:
    ramp = np.linspace(0, 1, 120, dtype=np.float32)
    image = np.ascontiguousarray(np.broadcast_to((ramp[:, None] + ramp)[..., None] / 2, (120, 120, 3)))
    for number in range(40):
        result = image
        for each in PIPELINES[name].draw(f"{number}"):
            if each.operator.name.startswith("resize"):
                result = each.operator(result, np.random.default_rng(0), each.values, (120, 120))
        moved = (resampled(result, 120, 120) - image)[50:70, 50:70].mean() * 119
        assert abs(moved) < 0.2, f"{moved:.2f} pixels"


def test_lv_low_light_and_llnet_darken_by_the_gammas_and_gains_of_their_sources() -> None:
    image = np.full((1, 1, 3), 0.8, np.float32)
    gains, gammas = [], []
    for number in range(300):
        result, (first, second) = image, PIPELINES["lv_low_light"].draw(f"{number}")
        for each in (first, second):
            result = each.operator(result, np.random.default_rng(0), each.values)
        alpha, beta = (2.0 ** -float(each.values["stops"]) for each in (first, second))
        gamma = float(second.values["gamma"])
        assert result[0, 0, 0] == pytest.approx(beta * (alpha * 0.8) ** gamma, rel=1e-4)
        assert 0.9 <= alpha <= 1
        gains.append(beta)
        gammas.append(gamma)
    assert 0.5 <= min(gains) < 0.55 < 0.95 < max(gains) <= 1
    assert np.mean(gains) == pytest.approx(0.75, abs=0.03)
    assert 1.5 <= min(gammas) < 1.7 < 4.8 < max(gammas) <= 5
    llnet = [PIPELINES["llnet"].draw(f"{number}") for number in range(300)]
    assert {each.operator.name for one in llnet for each in one} == {"low_light", "gaussian_noise"}
    variances = [float(one[1].values["sigma"]) ** 2 for one in llnet]
    assert np.mean(variances) == pytest.approx(25**2 / 2, rel=0.1)
    assert 24 < max(variances) ** 0.5 <= 25


@pytest.mark.parametrize("value", [0.2, 0.6])
def test_cbdnets_noise_is_that_of_its_code_in_linear_light(value: float) -> None:
    coded = to_coded(np.full((64, 64, 3), value, np.float32))
    for number in range(3):
        shot, read = PIPELINES["cbdnet"].draw(f"{number}")[:2]
        noisy = coded
        for place, each in enumerate((shot, read)):
            noisy = each.operator(noisy, np.random.default_rng([number, place]), each.values)
        spread = np.hypot(value * float(shot.values["sigma"]), float(read.values["sigma"])) / 255
        assert (to_linear(noisy) - value).std() == pytest.approx(spread, rel=0.1)
    mosaics = [
        each.operator.name == "demosaicing" for n in range(DRAWS) for each in PIPELINES["cbdnet"].draw(f"{n}")
    ]
    assert sum(mosaics) / DRAWS == pytest.approx(0.8, abs=0.04)
