"""Three operators for tests: a noise, a gain and a change of size."""

from __future__ import annotations

import numpy as np

from shards.degradations.operator import Image, Operator, Parameter


def tiny_noise(image: Image, rng: np.random.Generator, *, sigma: float) -> Image:
    """Add Gaussian noise."""
    return image + np.float32(sigma / 255) * rng.standard_normal(image.shape, np.float32)


def tiny_gain(image: Image, rng: np.random.Generator, *, gain: float, clip: str, flip: int) -> Image:
    """Multiply an image."""
    image = image * np.float32(gain) if clip == "no" else np.minimum(image * np.float32(gain), 1)
    return image[::-1] if flip else image


def tiny_shrink(image: Image, rng: np.random.Generator, *, factor: int) -> Image:
    """Leave out rows and columns."""
    return image[::factor, ::factor]


TINY = {
    one.name: one
    for one in (
        Operator("tiny_noise", tiny_noise, {"sigma": Parameter(0, 100, "grey levels")}),
        Operator(
            "tiny_gain",
            tiny_gain,
            {
                "gain": Parameter(0, 4, default=1.5),
                "clip": Parameter(words=("yes", "no"), default="yes"),
                "flip": Parameter(0, 1, integer=True, default=0),
            },
        ),
        Operator("tiny_shrink", tiny_shrink, {"factor": Parameter(1, 4, integer=True, default=2)}),
    )
}


SECOND_ORDER = [
    {
        "repeat": {
            "times": {"range": [1, 2]},
            "steps": [
                {
                    "shuffle": [
                        {"tiny_noise": {"sigma": {"log_range": [1, 30]}}},
                        {"tiny_gain": {"gain": {"range": [0.5, 1.5]}, "flip": {"probability": 0.5}}},
                        "tiny_shrink",
                    ]
                },
            ],
        }
    },
    {
        "maybe": {
            "probability": 0.5,
            "steps": [{"tiny_noise": {"sigma": {"choice": [5, 10], "weights": [3, 1]}}}],
        }
    },
    {"one_of": [{"weight": 2, "steps": [{"use": "noise35"}]}, {"steps": []}]},
]
PIPELINES = {"noise35": [{"tiny_noise": {"sigma": 35}}], "phone-night": SECOND_ORDER}
"""A first-order pipeline, and a second-order one with every kind of step."""
