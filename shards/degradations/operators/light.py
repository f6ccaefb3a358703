"""Light: too little, too much, unevenly spread."""

from __future__ import annotations

import numpy as np

from shards.degradations.linear_light import LIGHT, gains, in_light, power, to_coded, to_linear
from shards.degradations.normal import standard_normal
from shards.degradations.operator import Image, Parameter, operator
from shards.degradations.operators.noise import counted
from shards.degrade import smooth


@operator(
    2,
    stops=Parameter(
        0.0, 10.0, unit="stops", about="how much shorter the exposure is: each stop halves the light"
    ),
    gamma=Parameter(0.5, 5.0, about="exponent of the light before; above 1, shadows lose more", default=1.0),
    red=Parameter(0.25, 4.0, about="gain of red: the cast of the lamps", default=1.0),
    blue=Parameter(0.25, 4.0, about="gain of blue", default=1.0),
    photons=Parameter(0.0, 1e6, unit="photons", about="photons that give white; 0: no noise", default=1000.0),
    read=Parameter(0.0, 100.0, unit="electrons", about="standard deviation of the read noise", default=2.0),
    light=LIGHT,
)
def low_light(
    image: Image,
    rng: np.random.Generator,
    *,
    stops: float,
    gamma: float,
    red: float,
    blue: float,
    photons: float,
    read: float,
    light: str = "linear",
) -> Image:
    """Take the photograph with too little light: gamma, gain and cast of the light, then shot and read noise.

    Lv et al. (2021) for gamma and gain, Foi et al. (2008) for the noise. Without noise, `stops` 0 changes nothing.
    """
    if stops == 0 and gamma == red == blue == 1 and photons == 0:
        return image

    def expose(each: Image) -> Image:
        exposed: Image = power(each, gamma) * gains(red, blue) * np.float32(2.0**-stops)
        if photons:
            electrons = counted(exposed * np.float32(photons), rng)
            electrons += standard_normal(rng, image.shape) * np.float32(read)
            exposed = electrons / np.float32(photons)
        return exposed

    return in_light(light, image, expose)


@operator(
    gamma=Parameter(1.0, 5.0, about="exponent of the illumination"),
    reach=Parameter(
        1, 100, unit="pixels", about="reach of the mean that gives the illumination", default=12, integer=True
    ),
)
def dim_illumination(image: Image, rng: np.random.Generator, *, gamma: float, reach: int) -> Image:
    """Dim the scene but not its lamps and skies: I = R L becomes R L^gamma (CDD-11, Guo et al. 2024).

    The illumination L is the mean of the brightest channel around a pixel. `gamma` 1 changes nothing.
    """
    if gamma == 1:
        return image
    illumination = np.maximum(smooth(image.max(axis=2).astype(np.float64), reach), 1e-3)[..., None]
    return image * (illumination ** (gamma - 1)).astype(np.float32)


@operator(
    stops=Parameter(
        0.0, 6.0, unit="stops", about="how much longer the exposure is: each stop doubles the light"
    )
)
def over_exposure(image: Image, rng: np.random.Generator, *, stops: float) -> Image:
    """Expose for too long: linear light is multiplied, and what is above white is lost. `stops` 0 changes nothing."""
    return to_coded(to_linear(image) * np.float32(2.0**stops)) if stops else image


@operator(angle=Parameter(0.0, 80.0, unit="degrees", about="angle between the axis of the lens and a corner"))
def vignetting(image: Image, rng: np.random.Generator, *, angle: float) -> Image:
    """Darken towards the corners by the law of illumination, cos⁴ of the angle (a thin lens). `angle` 0: no change."""
    if not angle:
        return image
    down, right = (np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in image.shape[:2])
    height, width = image.shape[:2]
    corner = np.hypot(height, width)
    tangent = np.hypot(down[:, None] * height, right * width) / corner * np.tan(np.radians(angle))
    fall = (1 + tangent**2) ** -2
    return to_coded(to_linear(image) * fall[..., None].astype(np.float32))
