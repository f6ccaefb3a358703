"""Published syntheses of degradations, as pipelines in the spelling of a job: `use: real_esrgan`.

The figures are those of the papers and of their public code; docs/degradations.md says what differs.
"""

from __future__ import annotations

from itertools import combinations
from math import comb, log2, pi, sqrt
from typing import Any

Step = dict[str, Any]
Steps = list[Step]

_TURN = {"range": [-180, 180]}
_CHANNELS_OF_REAL_ESRGAN = {"choice": ["colour", "grey"], "weights": [0.6, 0.4]}
_ALIASED = {"choice": ["area", "bilinear_aliased", "bicubic_aliased"]}
"""The filters of F.interpolate and of OpenCV, which do not widen when an image shrinks."""
_QUALITY = {"range": [30, 95]}


def _range(low: float, high: float) -> Step:
    return {"range": [low, high]}


def _one_of(*branches: tuple[float, Steps]) -> Step:
    return {"one_of": [{"weight": weight, "steps": steps} for weight, steps in branches]}


def _maybe(probability: float, *steps: Step) -> Step:
    return {"maybe": {"probability": probability, "steps": list(steps)}}


# Real-ESRGAN (Wang et al., ICCVW 2021): blur, resize, noise and JPEG, twice.


def _real_esrgan(scale: float) -> Steps:
    back = {"resize_back": {"scale": 1 / scale, "filter": _ALIASED}}
    ringing = _maybe(0.8, {"sinc_filter": {"cutoff": _range(pi / 3, pi), "size": {"choice": _sides(7, 21)}}})
    jpeg = {"jpeg": {"quality": _QUALITY}}
    return [
        _blur_of_real_esrgan(3),
        _one_of(
            (0.2, [{"resize": {"scale": _range(1, 1.5), "filter": _ALIASED}}]),
            (0.7, [{"resize": {"scale": _range(0.15, 1), "filter": _ALIASED}}]),
            (0.1, []),
        ),
        _noise_of_real_esrgan(30, 3),
        jpeg,
        _maybe(0.8, _blur_of_real_esrgan(1.5)),
        _one_of(
            (0.3, [{"resize_back": {"scale": _range(1 / scale, 1.2 / scale), "filter": _ALIASED}}]),
            (0.4, [{"resize_back": {"scale": _range(0.3 / scale, 1 / scale), "filter": _ALIASED}}]),
            (0.3, [back]),
        ),
        _noise_of_real_esrgan(25, 2.5),
        _one_of((0.5, [back, ringing, jpeg]), (0.5, [jpeg, back, ringing])),
    ]


def _blur_of_real_esrgan(sigma: float) -> Step:
    one = {"sigma": _range(0.2, sigma), "size": {"choice": _sides(7, 21)}, "light": "coded"}
    two = {**one, "sigma_y": _range(0.2, sigma), "angle": _TURN}

    def shaped(name: str, width: Step, low: float, high: float) -> Steps:
        betas = [_range(low, 1), _range(1, high)] if low < 1 else [1, _range(1, high)]
        return [_one_of(*((1, [{name: {**width, "beta": beta}}]) for beta in betas))]

    small = {"cutoff": _range(pi / 3, pi), "size": {"choice": _sides(7, 11)}}
    large = {"cutoff": _range(pi / 5, pi), "size": {"choice": _sides(13, 21)}}
    return _one_of(
        (0.9 * 0.45, [{"gaussian_blur": one}]),
        (0.9 * 0.25, [{"gaussian_blur": two}]),
        (0.9 * 0.12, shaped("generalised_gaussian_blur", one, 0.5, 4)),
        (0.9 * 0.03, shaped("generalised_gaussian_blur", two, 0.5, 4)),
        (0.9 * 0.12, shaped("plateau_blur", one, 1, 2)),
        (0.9 * 0.03, shaped("plateau_blur", two, 1, 2)),
        (0.1 * 3 / 8, [{"sinc_filter": small}]),
        (0.1 * 5 / 8, [{"sinc_filter": large}]),
    )


def _noise_of_real_esrgan(sigma: float, strength: float) -> Step:
    shot = {"photons": 256, "strength": _range(0.05, strength), "channels": _CHANNELS_OF_REAL_ESRGAN}
    return _one_of(
        (0.5, [{"gaussian_noise": {"sigma": _range(1, sigma), "channels": _CHANNELS_OF_REAL_ESRGAN}}]),
        (0.5, [{"poisson_noise": shot}]),
    )


def _sides(low: int, high: int) -> list[int]:
    return list(range(low, high + 1, 2))


# BSRGAN (Zhang et al., ICCV 2021): two blurs, two resizes, noise and JPEG in random order, then JPEG.


def _bsrgan(scale: int) -> Steps:
    noise = {
        "gaussian_noise": {
            "sigma": {"choice": list(range(2, 26))},
            "channels": {"choice": ["colour", "grey"]},
        }
    }
    jpeg = {"jpeg": {"quality": _QUALITY}}

    def shuffled(scale_left: int) -> Step:
        first = _one_of(
            (0.75, [{"resize": {"scale": _one_over(1, 2 * scale_left), "filter": _ALIASED}}]),
            (
                0.25,
                [
                    {"gaussian_blur": {"sigma": _range(0.1, 0.6 * scale_left), "size": 25, "light": "coded"}},
                    {"resize": {"scale": 1 / scale_left, "filter": "bilinear_aliased"}},
                ],
            ),
        )
        last = {"resize_back": {"scale": 1 / scale, "filter": _ALIASED}}
        others = [_blur_of_bsrgan(scale_left), _blur_of_bsrgan(scale_left), noise, _maybe(0.9, jpeg)]
        # A random order in which the last resize comes after the first: each set of steps may stand behind it.
        branches: list[tuple[float, Steps]] = []
        for count in range(len(others) + 1):
            for behind in combinations(range(len(others)), count):
                before = [step for number, step in enumerate(others) if number not in behind]
                after = [others[number] for number in behind]
                weight = (len(others) + 1 - count) / comb(len(others), count)
                branches.append(
                    (weight, [{"shuffle": [first, *before]}, last, *([{"shuffle": after}] if after else [])])
                )
        return _one_of(*branches)

    if scale != 4:
        return [shuffled(scale), jpeg]
    halved = _one_of(
        (0.5, [{"resize": {"scale": 0.5, "filter": _ALIASED}}]),
        (0.5, [{"resize": {"scale": 0.5, "filter": "bicubic"}}]),
    )
    return [_one_of((0.25, [halved, shuffled(2)]), (0.75, [shuffled(4)])), jpeg]


def _blur_of_bsrgan(scale: int) -> Step:
    size = {"choice": _sides(7, 25)}
    width = _quantiles(lambda share: sqrt((4 + scale) * share))  # variances are uniform
    two = {"sigma": width, "sigma_y": width, "angle": _range(0, 180), "size": size, "light": "coded"}
    one = {"sigma": _range(0, 2 + 0.2 * scale), "size": size, "light": "coded"}
    return _one_of((0.5, [{"gaussian_blur": two}]), (0.5, [{"gaussian_blur": one}]))


def _one_over(low: float, high: float) -> Step:
    """Return 1 / u for u uniform between two numbers."""
    return _quantiles(lambda share: 1 / (low + share * (high - low)))


def _quantiles(value: Any) -> Step:
    """Return a choice of 32 equally frequent values of a distribution that has no name in a job."""
    return {"choice": [round(value((number + 0.5) / 32), 4) for number in range(32)]}


# GFPGAN (Wang et al., CVPR 2021): the first order of blur, downsampling, noise and JPEG, for faces.


def _gfpgan() -> Steps:
    width = {"sigma": _range(0.1, 10), "size": 41, "light": "coded"}
    return [
        _one_of(
            (0.5, [{"gaussian_blur": width}]),
            (0.5, [{"gaussian_blur": {**width, "sigma_y": _range(0.1, 10), "angle": _TURN}}]),
        ),
        {"resize": {"scale": _one_over(0.8, 8), "filter": "bilinear_aliased"}},
        {"gaussian_noise": {"sigma": _range(0, 20)}},
        {"jpeg": {"quality": _range(60, 100)}},
        {"resize_back": {"filter": "bilinear_aliased"}},
        _maybe(0.01, {"saturation": {"factor": 0}}),
    ]


# CDD-11 (Guo et al., OneRestore, ECCV 2024): low light, then rain or snow, then haze.

_CDD11: dict[str, Steps] = {  # in the order of composition
    "low": [
        {"dim_illumination": {"gamma": _range(2, 3)}},
        {"gaussian_noise": {"sigma": _range(0.03 * 255, 0.08 * 255)}},
    ],
    "rain": [
        {
            "rain": {
                "drops": _range(17, 31),
                "length": 27,
                "angle": _range(-30, 30),
                "brightness": _range(0.1, 0.13),
                "light": "coded",
            }
        }
    ],
    "snow": [
        {
            "snow": {
                "flakes": _range(3, 6),
                "radius": 2.5,
                "angle": _range(-80, 80),
                "length": 5,
                "opacity": _range(0.7, 0.9),
                "light": "coded",
            }
        }
    ],
    "haze": [{"haze": {"beta": _range(1, 2), "airlight": _range(0.6, 0.9), "limit": 0.7, "light": "coded"}}],
}

_CDD11_FOLDERS = (
    *("low", "rain", "snow", "haze", "low_rain", "low_snow", "low_haze", "haze_rain", "haze_snow"),
    *("low_haze_rain", "low_haze_snow"),
)


def _cdd11(folder: str) -> Steps:
    return [step for part, steps in _CDD11.items() if part in folder.split("_") for step in steps]


# Low light by a gamma and a gain of the coded values, without the noise that `low_light` adds by default.


def _darkened(gamma: float | Step, gain: float | Step = 0) -> Step:
    """Return a step to a power, and darker by a number of stops."""
    return {"low_light": {"stops": gain, "gamma": gamma, "photons": 0, "light": "coded"}}


def _gain(low: float) -> Step:
    """Return the stops of a factor that is uniform between a number and 1."""
    return _quantiles(lambda share: -log2(low + share * (1 - low)))


# CBDNet (Guo et al., CVPR 2019): noise of linear light that grows with it, and one that does not, then demosaicing.
_CBDNET: Steps = [
    {"speckle_noise": {"sigma": _range(0, 0.16 * 255), "light": "linear"}},
    {"gaussian_noise": {"sigma": _range(0, 0.06 * 255), "light": "linear"}},
    _one_of((0.8, [{"demosaicing": {"pattern": {"choice": ["gbrg", "grbg", "bggr", "rggb"]}}}]), (0.2, [])),
]


PRESETS: dict[str, Steps] = {
    "real_esrgan": _real_esrgan(1),
    "real_esrgan_x2plus": _real_esrgan(2),
    "real_esrgan_x4plus": _real_esrgan(4),
    "bsrgan": _bsrgan(1),
    "bsrgan_x2": _bsrgan(2),
    "bsrgan_x4": _bsrgan(4),
    # DnCNN-B (Zhang et al., TIP 2017): one network for all levels of Gaussian noise.
    "dncnn_b": [{"gaussian_noise": {"sigma": _range(0, 55)}}],
    # FFDNet (Zhang et al., TIP 2018) and DRUNet (Zhang et al., TPAMI 2021): the levels of their public training code.
    "ffdnet": [{"gaussian_noise": {"sigma": _range(0, 75)}}],
    "drunet": [{"gaussian_noise": {"sigma": _range(0, 50)}}],
    # FBCNN (Jiang et al., ICCV 2021): one network for all qualities of JPEG.
    "fbcnn": [
        _one_of(
            (0.25, [{"jpeg": {"quality": _range(8, 96)}}]),
            (0.75, [{"jpeg": {"quality": {"choice": list(range(10, 61, 10))}}}]),
        )
    ],
    # SwinIR (Liang et al., ICCVW 2021): a network for each quality of JPEG.
    **{f"swinir_jpeg{quality}": [{"jpeg": {"quality": quality}}] for quality in (10, 20, 30, 40)},
    "gfpgan": _gfpgan(),
    # IKC (Gu et al., CVPR 2019): isotropic Gaussians and bicubic downsampling.
    "ikc_x4": [
        {"gaussian_blur": {"sigma": _range(0.2, 4), "size": 21, "light": "coded"}},
        {"resize": {"scale": 1 / 4}},
    ],
    # Unprocessing (Brooks et al., CVPR 2019): shot and read noise of phones; 1 / photons is its shot noise.
    "unprocessing": [
        {
            "sensor_noise": {
                "photons": {"log_range": [1 / 0.012, 1 / 0.0001]},
                "read": _range(0.7, 1.4),
                "red": _range(1.9, 2.4),
                "blue": _range(1.5, 1.9),
            }
        }
    ],
    "cbdnet": _CBDNET,
    "cbdnet_jpeg": [*_CBDNET, {"jpeg": {"quality": _range(60, 100)}}],
    # Lv et al. (IJCV 2021): beta (alpha I)^gamma.
    "lv_low_light": [_darkened(1, _gain(0.9)), _darkened(_range(1.5, 5), _gain(0.5))],
    # LLNet (Lore et al., Pattern Recognition 2017): a gamma, then noise of a uniform variance up to 25 squared.
    "llnet": [
        _darkened(_range(2, 5)),
        {"gaussian_noise": {"sigma": _quantiles(lambda share: 25 * sqrt(share))}},
    ],
    **{f"cdd11_{name}": _cdd11(name) for name in _CDD11_FOLDERS},
}
"""Steps of each preset."""
