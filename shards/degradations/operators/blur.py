"""Blur: Gaussians and their relatives, ringing, motion and defocus."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shards.degradations.convolution import Plane, convolved, path
from shards.degradations.linear_light import CODED_LIGHT, LIGHT, in_light
from shards.degradations.operator import Image, Parameter, Value, operator
from shards.degrade import disc

_ANGLE = Parameter(-180.0, 180.0, unit="degrees", about="direction, clockwise from the right", default=0.0)
_WIDTHS = {
    "sigma": Parameter(
        0.0, 25.0, unit="pixels", about="standard deviation; along `angle` if there is `sigma_y`"
    ),
    "sigma_y": Parameter(
        0.0, 25.0, unit="pixels", about="standard deviation across `angle`; 0: `sigma`", default=0.0
    ),
    "angle": _ANGLE,
}
_SIZE = Parameter(3, 101, unit="pixels", about="side of the kernel; even: one more", default=21, integer=True)


@operator(
    2,
    **_WIDTHS,
    size=Parameter(
        0, 101, unit="pixels", about="side of the kernel; 0: 3.7 standard deviations", default=0, integer=True
    ),
    light=LIGHT,
)
def gaussian_blur(
    image: Image,
    rng: np.random.Generator,
    *,
    sigma: float,
    sigma_y: float,
    angle: float,
    size: int,
    light: str,
) -> Image:
    """Blur by a Gaussian, isotropic or anisotropic.

    exp(-d² / 2), where d is the distance in standard deviations. `sigma` 0 changes nothing.
    """
    reach = _gaussian_reach(sigma, sigma_y, size)
    return _blurred(image, np.exp(-0.5 * _distance(sigma, sigma_y, angle, reach)), light)


@operator(
    2,
    **_WIDTHS,
    beta=Parameter(0.3, 8.0, about="shape: 1 is the Gaussian, less has a peak and long tails, more is flat"),
    size=_SIZE,
    light=LIGHT,
)
def generalised_gaussian_blur(
    image: Image,
    rng: np.random.Generator,
    *,
    sigma: float,
    sigma_y: float,
    angle: float,
    beta: float,
    size: int,
    light: str,
) -> Image:
    """Blur by a generalised Gaussian.

    exp(-d^(2 beta) / 2) (Pascal et al. 2013; used by Real-ESRGAN, Wang et al. 2021). `sigma` 0 changes nothing.
    """
    distance = _distance(sigma, sigma_y, angle, size // 2)
    return _blurred(image, np.exp(-0.5 * distance**beta), light)


@operator(
    2,
    **_WIDTHS,
    beta=Parameter(0.3, 8.0, about="shape: the larger, the steeper the edge of the plateau"),
    size=_SIZE,
    light=LIGHT,
)
def plateau_blur(
    image: Image,
    rng: np.random.Generator,
    *,
    sigma: float,
    sigma_y: float,
    angle: float,
    beta: float,
    size: int,
    light: str,
) -> Image:
    """Blur by a plateau with soft edges.

    1 / (1 + d^(2 beta)) (Real-ESRGAN, Wang et al. 2021). `sigma` 0 changes nothing.
    """
    distance = _distance(sigma, sigma_y, angle, size // 2)
    return _blurred(image, 1 / (1 + distance**beta), light)


@operator(
    2,
    cutoff=Parameter(0.3, float(np.pi), unit="radians per pixel", about="highest frequency that passes"),
    size=_SIZE,
    light=CODED_LIGHT,
)
def sinc_filter(image: Image, rng: np.random.Generator, *, cutoff: float, size: int, light: str) -> Image:
    """Cut off high frequencies, which leaves rings beside edges, as sharpening and codecs do.

    c J1(c r) / (2 pi r), the impulse response of an ideal circular low-pass (Real-ESRGAN, Wang et al. 2021).
    """
    from scipy.special import j1  # slow to import, and `mirage schema` needs names only

    grid = np.arange(-(size // 2), size // 2 + 1)
    radius = np.hypot(grid[:, None], grid)
    radius[size // 2, size // 2] = 1.0
    kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return _blurred(image, kernel, light)


@operator(
    2,
    length=Parameter(0.0, 100.0, unit="pixels", about="length of the path during the exposure"),
    angle=_ANGLE,
    bend=Parameter(
        0.0, 360.0, unit="degrees", about="standard deviation of the turn along the path", default=0.0
    ),
    light=LIGHT,
)
def motion_blur(
    image: Image, rng: np.random.Generator, *, length: float, angle: float, bend: float, light: str
) -> Image:
    """Blur by a motion of the camera along a path, straight or curved, at constant speed.

    The direction turns as a random walk, in the manner of Boracchi and Foi (2012). `length` 0 changes nothing.
    """
    if not length:
        return image
    steps = 4 * int(np.ceil(length)) + 1
    turn = np.cumsum(rng.standard_normal(steps)) * (bend / np.sqrt(steps))
    direction = np.radians(angle + turn)
    # Points between the ends of steps: a straight path of length L has points from -L/2 to L/2.
    x, y = (np.cumsum(part) * (length / (steps - 1)) for part in (np.cos(direction), np.sin(direction)))
    return _blurred(image, path(x - x.mean(), y - y.mean()), light)


@operator(
    2, radius=Parameter(0.0, 50.0, unit="pixels", about="radius of the circle of confusion"), light=LIGHT
)
def defocus_blur(image: Image, rng: np.random.Generator, *, radius: float, light: str) -> Image:
    """Blur by a lens out of focus: each point becomes a disc (geometrical optics). `radius` 0 changes nothing."""
    return _blurred(image, disc(radius), light)


def kernel_radius(name: str, values: Mapping[str, Value]) -> int:
    """Return the pixels on each side of the centre of an operator's kernel; 0 without one, or if it is one pixel."""
    number = {key: float(value) for key, value in values.items() if not isinstance(value, str)}
    match name:
        case "gaussian_blur" | "generalised_gaussian_blur" | "plateau_blur":
            widths = number["sigma"], number["sigma_y"]
            return _gaussian_reach(*widths, int(number["size"])) if any(widths) else 0
        case "sinc_filter":
            return int(number["size"]) // 2
        case "motion_blur":
            return int(np.ceil(number["length"] / 2))
        case "defocus_blur":
            return int(np.ceil(number["radius"]))
    return 0


def _gaussian_reach(sigma: float, sigma_y: float, size: int) -> int:
    return size // 2 if size else int(np.ceil(3.7 * max(sigma, sigma_y)))


def _distance(sigma: float, sigma_y: float, angle: float, reach: int) -> NDArray[np.float64]:
    """Return the square of the distance of each place of a kernel from its centre, in standard deviations."""
    reach = reach if sigma or sigma_y else 0
    grid = np.arange(-reach, reach + 1)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = grid * cosine + grid[:, None] * sine, grid[:, None] * cosine - grid * sine
    widths = np.maximum((sigma, sigma_y or sigma), 1e-3)
    squares: NDArray[np.float64] = (along / widths[0]) ** 2 + (across / widths[1]) ** 2
    return squares


def _blurred(image: Image, kernel: NDArray[np.floating], light: str) -> Image:
    """Return an image after a kernel that is scaled to the sum 1; a kernel of one pixel changes nothing.

    Weights below 1e-7 of the sum change no grey level and take as long as the others: they are left out.
    """
    kernel = np.where(np.abs(kernel) < 1e-7 * kernel.sum(), 0, kernel)
    weights: Plane = (kernel / kernel.sum()).astype(np.float32)
    if np.count_nonzero(weights) == 1:
        return image
    return in_light(light, image, lambda each: convolved(each, weights))
