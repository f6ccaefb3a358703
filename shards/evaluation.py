"""Held-out samples: whole images in a fixed order, with noise that depends on the sample only."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from shards.augment import centre_window
from shards.dataset import Dataset, DatasetRows
from shards.degradations.pipeline import Pipeline, evaluation_key
from shards.errors import ManifestError
from shards.manifest import ManifestRow
from shards.noise import add_noise
from shards.release_noise import ReleaseNoise
from shards.sample import NOISE, SIGMA

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EvalItem:
    """One held-out image under one degradation; both (h, w, 3) uint8."""

    id: str
    degradation: str
    degraded: Image
    clean: Image
    source: str = ""
    """Name of the original dataset."""
    pipeline: str = ""
    """Digest of the pipeline and seed that degraded the image; "" for packed pairs and noise levels."""


class EvaluationSet:
    """The test split under the given degradations, in their order and then by id.

    Images are centre-cropped to multiples of `multiple` pixels, as in the all-in-one benchmarks (16; CDD-11 uses 1).
    Noise is seeded by seed, id and level, so it does not depend on the order or the worker; `noise="release"` is the
    authors' single sequence over all images of the split (`shards.release_noise`). `pipelines` degrade clean images,
    those of the noise levels, under their names, by `pipeline_seed` and id.
    """

    def __init__(
        self,
        dataset: Dataset,
        degradations: Sequence[str],
        seed: int,
        multiple: int = 16,
        noise: Literal["per-image", "release"] = "per-image",
        pipelines: Mapping[str, Pipeline] | None = None,
        pipeline_seed: int = 0,
    ) -> None:
        self.pipeline_seed = pipeline_seed
        self.pipelines = dict(pipelines or {})
        self.dataset, self.seed, self.multiple = dataset, seed, multiple
        self._release = None
        if noise == "release":
            clean = {row.id: row.clean for row in dataset.rows("test", NOISE)}
            windows = {
                id_: centre_window(one.height, one.width, multiple) for id_, one in sorted(clean.items())
            }
            self._release = ReleaseNoise([(id_, (w.height, w.width)) for id_, w in windows.items()])
        self._degradations = tuple(degradations)
        self._rows: list[DatasetRows] = []
        self._orders: list[NDArray[np.uint32]] = []
        for degradation in degradations:
            rows = dataset.rows("test", NOISE if degradation in self.pipelines else degradation)
            if not rows:
                raise ManifestError(
                    f"{', '.join(dataset.uris)}: no test samples of {degradation!r}; there are "
                    f"{dataset.available('test')}. Pack it, or do not evaluate it."
                )
            ids = rows.ids()
            self._rows.append(rows)
            self._orders.append(np.array(sorted(range(len(ids)), key=ids.__getitem__), np.uint32))
        self._ends = list(accumulate(map(len, self._rows)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[EvalItem]:
        return self.items()

    def __getitem__(self, index: int) -> EvalItem:
        return self.item(index)

    def item(self, index: int, cut: Callable[[Image], Image] | None = None) -> EvalItem:
        """Return an item; `cut` crops both images, and a pipeline degrades only what it leaves."""
        degradation, row = self._entry(index)
        window = centre_window(row.clean.height, row.clean.width, self.multiple)
        degraded, clean = self.dataset.read(row)  # whole images, so that checksums are verified
        clean, cut = window.of(clean), cut or _whole
        pipeline, digest = self.pipelines.get(degradation), ""
        if pipeline is not None:
            clean, digest = cut(clean), pipeline.evaluation_digest(self.pipeline_seed)
            degraded = pipeline.degrade(clean, evaluation_key(self.pipeline_seed, row.id))
        else:
            degraded = self._noisy(clean, row.id, degradation) if degraded is None else window.of(degraded)
            clean, degraded = cut(clean), cut(degraded)
        return EvalItem(row.id, degradation, degraded, clean, row.source, digest)

    def name(self, index: int) -> tuple[str, str]:
        """Return degradation and id of an item, without reading it."""
        degradation, row = self._entry(index)
        return degradation, row.id

    def first(self, count: int) -> list[int]:
        """Return the indices of the first `count` items of each degradation."""
        return [
            end - len(rows) + index
            for rows, end in zip(self._rows, self._ends, strict=True)
            for index in range(min(count, len(rows)))
        ]

    def items(self, start: int = 0, stride: int = 1) -> Iterator[EvalItem]:
        """Iterate over every `stride`-th item from `start` on, the share of one of `stride` workers."""
        return (self[index] for index in range(start, len(self), stride))

    def _entry(self, index: int) -> tuple[str, ManifestRow]:
        """Return the degradation and the row of an item."""
        number = range(len(self))[index]
        part = bisect_right(self._ends, number)
        place = self._orders[part][number - self._ends[part] + len(self._rows[part])]
        return self._degradations[part], self._rows[part][int(place)]

    def _noisy(self, clean: Image, id_: str, degradation: str) -> Image:
        sigma = SIGMA[degradation]
        if self._release is not None:
            return self._release.add(clean, id_, sigma)
        return noisy_example(clean, id_, sigma, self.seed)


def _whole(image: Image) -> Image:
    return image


def noisy_example(clean: Image, id_: str, sigma: int, seed: int) -> Image:
    """Return a photograph with noise of one level, which depends on nothing but the seed, its id and the level."""
    digest = hashlib.blake2b(f"{id_}/{sigma}".encode(), digest_size=8).digest()
    key = torch.tensor([int.from_bytes(digest, "little", signed=True)])
    image = torch.from_numpy(clean.copy()).permute(2, 0, 1)[None]
    noisy = add_noise(image, torch.tensor([float(sigma)]), key, seed)
    return np.ascontiguousarray(noisy[0].permute(1, 2, 0).numpy())
