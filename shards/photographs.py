"""Real photographs from Python wheels, for a demonstration without downloads.

The split is by photograph, so that no evaluated photograph was seen in training.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import PackError
from shards.images import halve, read_image


@dataclass(frozen=True, slots=True)
class DemoPhotograph:
    """One photograph in a wheel."""

    name: str
    package: str
    file: str
    split: Literal["train", "test"]
    licence: str
    halved: bool = False
    """Whether the image is reduced to half size, which removes its JPEG compression artefacts."""


_SKIMAGE, _SKLEARN, _MATPLOTLIB = "skimage", "sklearn", "matplotlib"
_FOLDERS = {
    _SKIMAGE: "data",
    _SKLEARN: "datasets/images",
    _MATPLOTLIB: "mpl-data/sample_data",
}
_MIDDLEBURY = "Middlebury 2014 stereo dataset; terms not stated in scikit-image"

PHOTOGRAPHS = (
    # Held out: an animal, a landscape with a building, a still life, a night scene.
    DemoPhotograph("chelsea", _SKIMAGE, "chelsea.png", "test", "CC0, Stefan van der Walt"),
    DemoPhotograph("china", _SKLEARN, "china.jpg", "test", "CC-BY-2.0, danielbuechele"),
    DemoPhotograph("coffee", _SKIMAGE, "coffee.png", "test", "CC0, Rachel Michetti"),
    DemoPhotograph("rocket", _SKIMAGE, "rocket.jpg", "test", "public domain, SpaceX"),
    # Seen in training.
    DemoPhotograph("astronaut", _SKIMAGE, "astronaut.png", "train", "public domain, NASA"),
    DemoPhotograph("brick", _SKIMAGE, "brick.png", "train", "CC0, CC0Textures"),
    DemoPhotograph("camera", _SKIMAGE, "camera.png", "train", "CC0, Lav Varshney"),
    DemoPhotograph("coins", _SKIMAGE, "coins.png", "train", "no known restrictions, Brooklyn Museum"),
    DemoPhotograph("flower", _SKLEARN, "flower.jpg", "train", "CC-BY-2.0, vultilion"),
    DemoPhotograph("grace_hopper", _MATPLOTLIB, "grace_hopper.jpg", "train", "public domain, US Navy"),
    DemoPhotograph("grass", _SKIMAGE, "grass.png", "train", "CC0, linolafett"),
    DemoPhotograph("gravel", _SKIMAGE, "gravel.png", "train", "CC0, CC0Textures"),
    DemoPhotograph("hubble", _SKIMAGE, "hubble_deep_field.jpg", "train", "public domain, NASA", halved=True),
    DemoPhotograph("ihc", _SKIMAGE, "ihc.png", "train", "no known restrictions, CMMI"),
    DemoPhotograph("moon", _SKIMAGE, "moon.png", "train", "not stated in scikit-image"),
    DemoPhotograph("motorcycle_left", _SKIMAGE, "motorcycle_left.png", "train", _MIDDLEBURY),
    DemoPhotograph("motorcycle_right", _SKIMAGE, "motorcycle_right.png", "train", _MIDDLEBURY),
    DemoPhotograph("retina", _SKIMAGE, "retina.jpg", "train", "CC0, Mikael Häggström", halved=True),
)


def photograph_file(photograph: DemoPhotograph) -> tuple[str, Path]:
    """Return the photograph's name within the wheels and its file, without importing the package."""
    spec = importlib.util.find_spec(photograph.package)
    if spec is None or spec.origin is None:
        raise PackError(
            f"photograph {photograph.name!r} is in the package {photograph.package!r}, which is not installed. "
            "Install it: pip install 'mirage-orchestrator[demo]'."
        )
    inside = f"{_FOLDERS[photograph.package]}/{photograph.file}"
    return f"{photograph.package}/{inside}", Path(spec.origin).parent / inside


def read_photograph(photograph: DemoPhotograph) -> NDArray[np.uint8]:
    """Return the pixels, (h, w, 3) uint8 RGB, from the installed package."""
    image = read_image(photograph_file(photograph)[1])
    return halve(image) if photograph.halved else image
