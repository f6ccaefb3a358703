"""Create files like those of the release's datasets from real photographs, in the same sizes and file formats.

The photographs are resized with antialiasing to cover the size, cropped, and degraded by `shards.degrade`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from orchestrator.bench.errors import BenchError
from shards.degrade import degrade
from shards.images import list_images, read_image
from shards.photographs import PHOTOGRAPHS, read_photograph
from shards.problems import DataProblem
from shards.sample import NOISE
from shards.sources.image import ImageFile
from shards.sources.pair import Pair

Image = NDArray[np.uint8]

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class RawDataset:
    """A dataset of the release: its files' places, size and format."""

    name: str
    degradation: str
    """Our name of it; `noise` has clean files only."""
    task: str
    """The release's name of it."""
    height: int
    width: int
    suffix: str
    degraded: str
    """Pattern of the degraded files below the root, "" for `noise`."""
    clean: str


DATASETS = (
    RawDataset("BSD400", "noise", "denoise_15", 321, 481, "jpg", "", "Denoise/bsd{n}.{s}"),
    RawDataset("WED", "noise", "denoise_15", 450, 600, "bmp", "", "Denoise/wed{n}.{s}"),
    RawDataset(
        "Rain100L", "rain", "derain", 321, 481, "png", "Derain/rainy/rain-{n}.{s}", "Derain/gt/norain-{n}.{s}"
    ),
    RawDataset(
        "OTS",
        "haze",
        "dehaze",
        412,
        550,
        "jpg",
        "Dehaze/synthetic/{n}_0.8_0.2.{s}",
        "Dehaze/original/{n}.{s}",
    ),
    RawDataset("GoPro", "blur", "deblur", 720, 1280, "png", "Deblur/blur/{n}.{s}", "Deblur/sharp/{n}.{s}"),
    RawDataset("LOL-v1", "lowlight", "enhance", 400, 600, "png", "Enhance/low/{n}.{s}", "Enhance/gt/{n}.{s}"),
)

PHOTOGRAPHS_AS_JPEG = (
    RawDataset("720p", "noise", "denoise_15", 720, 1280, "jpg", "", "Denoise/hd{n}.{s}"),
    RawDataset("2048 px", "noise", "denoise_15", 1365, 2048, "jpg", "", "Denoise/large{n}.{s}"),
)
"""Clean photographs as cameras and the web have them, in no dataset of the release."""


def photographs(folder: Path | None) -> list[Image]:
    """Return the larger colour photographs of a folder, or of Python wheels. Raises BenchError."""
    if folder is None:
        found = [read_photograph(photograph) for photograph in PHOTOGRAPHS]
    else:
        found = [read_image(path) for path in list_images(folder)]
    large = [image for image in found if min(image.shape[:2]) >= 300 and not _is_grey(image)]
    if len(large) < 2:
        raise BenchError(
            f"{folder}: fewer than two colour photographs of at least 300 pixels. Name another folder."
        )
    return large


def create_files(root: Path, raw: RawDataset, images: list[Image], count: int, seed: int) -> None:
    """Write `count` samples of a dataset below `root`."""
    for number in range(1, count + 1):
        clean = _fit(images[number % len(images)], raw.height, raw.width, seed + number)
        files = {raw.clean: clean}
        if raw.degraded:
            files[raw.degraded] = degrade(clean, raw.degradation, seed, str(number))
        for pattern, pixels in files.items():
            path = root / pattern.format(n=number, s=raw.suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            PilImage.fromarray(pixels).save(path, quality=_JPEG_QUALITY)  # other formats ignore it


@dataclass(frozen=True)
class RawSource:
    """Source for packing the created samples; a sample's id is the path of its degraded file."""

    root: Path
    sets: tuple[RawDataset, ...]
    count: int
    listings: tuple[bytes, ...] = ()
    problems: tuple[DataProblem, ...] = ()

    @property
    def provenance(self) -> dict[str, object]:
        """Return the names of the datasets."""
        return {"source": "bench", "sets": [raw.name for raw in self.sets]}

    @cached_property
    def licences(self) -> Mapping[str, str]:
        """Return "not stated" for each dataset: nothing is published."""
        return {raw.name: "not stated" for raw in self.sets}

    def __len__(self) -> int:
        return len(self.sets) * self.count

    def training_counts(self) -> dict[str, int]:
        """Return the number of samples by row label."""
        found: dict[str, int] = {}
        for raw in self.sets:
            found[raw.degradation] = found.get(raw.degradation, 0) + self.count
        return found

    def __iter__(self) -> Iterator[Pair]:
        for raw in self.sets:
            for number in range(1, self.count + 1):
                clean = raw.clean.format(n=number, s=raw.suffix)
                degraded = raw.degraded.format(n=number, s=raw.suffix)
                yield Pair(
                    degraded or clean,
                    "train",
                    raw.degradation if degraded else NOISE,
                    ImageFile(self.root / degraded) if degraded else None,
                    ImageFile(self.root / clean),
                    raw.name,
                )


def _fit(image: Image, height: int, width: int, seed: int) -> Image:
    """Return a crop of this size from the photograph, reduced as little as possible."""
    scale = max(height / image.shape[0], width / image.shape[1])
    size = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
    resized = np.asarray(PilImage.fromarray(image).resize(size, PilImage.Resampling.LANCZOS))
    rng = np.random.default_rng(seed)
    top, left = rng.integers(resized.shape[0] - height + 1), rng.integers(resized.shape[1] - width + 1)
    return np.ascontiguousarray(resized[top : top + height, left : left + width])


def _is_grey(image: Image) -> bool:
    return bool((image[..., 0] == image[..., 1]).all())
