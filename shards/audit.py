"""Find photographs that occur twice: within a dataset, across datasets, and in both train and test.

Clean images are compared by content, since copies of a scene may differ in format. Perceptual hashes (signs of 63 low
cosine frequencies) that differ in at most 10 bits give candidates, and the correlation of 16 x 16 grey thumbnails
confirms them. Copies that were resized, recompressed, brightened or lightly filtered are found; mirrored, rotated or
strongly cropped ones are not. `shards.similar` compares the fingerprints; they are kept beside the shard cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.manifest import ManifestRow
from shards.processes import RowsCallback, TaskRunner, count_rows, run_inline
from shards.progress import ProgressCallback
from shards.similar import FINGERPRINT, THUMBNAIL, Similar, similar_images
from shards.store.files import write_atomically

log = logging.getLogger(__name__)

_EXAMPLES = 5
_KEPT = "fingerprints-1"
"""Folder of fingerprints, one file for each shard; another number for each way to compute them."""
_KEPT_SECONDS = 90 * 86_400


@dataclass(frozen=True)
class CleanImage:
    """One clean image of a split."""

    uri: str
    row: ManifestRow
    """First of its rows."""
    split: str
    samples: int
    """Number of its rows."""


@dataclass(frozen=True)
class DuplicateGroup:
    """Clean images of the same photograph: each is alike to another one of them."""

    first: CleanImage
    second: CleanImage
    """The two most telling ones: from train and test, with equal pixels, or most similar."""
    exact: bool
    """Whether all pixels of these two are equal as 8-bit RGB."""
    correlation: float
    """Correlation of their grey thumbnails."""
    size: int
    """Number of images of the group."""
    others: tuple[CleanImage, ...]
    """Some of the others."""

    @property
    def leaks(self) -> bool:
        """Whether one is a training image and the other a test image."""
        return self.first.split != self.second.split


@dataclass(frozen=True)
class FingerprintTask:
    """Clean images of one shard to fingerprint."""

    uri: str
    digest: str
    cache: Path
    cache_bytes: int
    rows: NDArray[np.int64]
    """Number of a row of each image."""


class CleanImages(Sequence[CleanImage]):
    """Every clean image of the datasets once per split, in manifest order; each is made when it is asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        found = (
            array("q"),
            array("q"),
            array("q"),
            array("q"),
        )  # dataset, number of the first row, shard, samples
        tested = bytearray()
        for number, manifest in enumerate(dataset.manifests):
            known: dict[tuple[int, int, bool], int] = {}
            for row_number, row in enumerate(manifest.rows):
                key = row.clean.shard, row.clean.offset, row.split == "test"
                index = known.setdefault(key, len(tested))
                if index == len(tested):
                    for column, value in zip(found, (number, row_number, row.clean.shard, 0), strict=True):
                        column.append(value)
                    tested.append(key[2])
                found[3][index] += 1
        self._places, self._rows, self._shards, self._samples = (np.array(c, np.int64) for c in found)
        self.tested: NDArray[np.bool_] = np.array(tested, np.bool_)

    def __len__(self) -> int:
        return len(self.tested)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        place = int(self._places[index])
        row = self._dataset.manifests[place].rows[int(self._rows[index])]
        return CleanImage(self._dataset.uris[place], row, row.split, int(self._samples[index]))

    def tasks(self, shard_cache: ShardCache) -> tuple[list[FingerprintTask], list[NDArray[np.int64]]]:
        """Return a task for each shard, and the images of each task."""
        order = np.lexsort((self._shards, self._places))
        moves = (np.diff(self._places[order]) != 0) | (np.diff(self._shards[order]) != 0)
        parts = [part for part in np.split(order, np.flatnonzero(moves) + 1) if len(part)]
        uris, digests = self._dataset.uris, self._dataset.digests
        return [
            FingerprintTask(
                uris[place], digests[place], shard_cache.folder, shard_cache.max_bytes, self._rows[part]
            )
            for part in parts
            for place in [int(self._places[part[0]])]
        ], parts

    def samples_by_uri(self, images: NDArray[np.int64]) -> Counter[str]:
        """Return the number of samples of some images, by the URI of their dataset."""
        sums = np.bincount(self._places[images], self._samples[images], len(self._dataset.uris))
        return Counter({uri: int(n) for uri, n in zip(self._dataset.uris, sums.tolist(), strict=True) if n})


class Duplicates(Sequence[DuplicateGroup]):
    """The groups that an audit found, leaks between train and test first; each is made when it is asked for."""

    def __init__(self, images: CleanImages, found: Similar) -> None:
        self._images, self._found = images, found

    def __len__(self) -> int:
        return len(self._found.pairs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        i, j, correlation, exact = self._found.pairs[index]
        members = self._found.members(index)
        others = [k for k in members[: _EXAMPLES + 2].tolist() if k not in (i, j)][:_EXAMPLES]
        first, second = (self._images[k] for k in sorted((i, j)))
        return DuplicateGroup(
            first, second, exact, correlation, len(members), tuple(self._images[k] for k in others)
        )

    @property
    def photographs(self) -> int:
        """Number of clean images in all groups."""
        return sum(len(self._found.members(index)) for index in range(len(self)))

    @property
    def exact(self) -> int:
        """Number of groups of which two images have equal pixels."""
        return self._found.exact

    @property
    def leaks(self) -> int:
        """Number of groups that are in both train and test."""
        return self._found.leaks

    def leaked_test_samples(self) -> Counter[str]:
        """Return the number of test samples whose photograph is also a training image, by URI of the test set."""
        return self._images.samples_by_uri(self._found.leaked)


def audit(
    dataset: Dataset,
    cache: ShardCache,
    *,
    runner: TaskRunner = run_inline,
    on_progress: ProgressCallback | None = None,
) -> Duplicates:
    """Return all groups of clean images of the same photograph, leaks between train and test first."""
    images = CleanImages(dataset)
    _forget_unused(cache.folder / _KEPT)
    tasks, parts = images.tasks(cache)
    prints = np.zeros(len(images), FINGERPRINT)
    for number, found in runner(fingerprint, tasks, count_rows(on_progress, len(images))):
        prints[parts[number]] = found
    return Duplicates(images, similar_images(prints, images.tested))


def fingerprint(task: FingerprintTask, on_rows: RowsCallback) -> NDArray[Any]:
    """Return the fingerprints of a task's images, those that are kept without reading the image."""
    dataset = Dataset([task.uri], ShardCache(task.cache, task.cache_bytes), [task.digest])
    (manifest,) = dataset.manifests
    rows = [manifest.rows[number] for number in task.rows.tolist()]
    path = task.cache / _KEPT / f"{manifest.shards[rows[0].clean.shard].sha256}.npy"
    kept = _load(path)
    known = {offset: index for index, offset in enumerate(kept["offset"].tolist())}
    prints = np.zeros(len(rows), FINGERPRINT)
    for number, row in enumerate(rows):
        if row.clean.offset in known:
            prints[number] = kept[known[row.clean.offset]]
        else:
            prints[number] = _fingerprint(row.clean.offset, dataset.clean_for_display(row))
        on_rows(1, row.id)
    fresh = prints[~np.isin(prints["offset"], kept["offset"])]
    if len(fresh):
        _save(path, np.concatenate([kept, fresh]))
    return prints


def _fingerprint(offset: int, pixels: NDArray[np.uint8]) -> tuple[object, ...]:
    exact = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()
    return offset, exact, _hash(pixels), _grey(pixels, THUMBNAIL).ravel()


def _load(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path)
        with suppress(OSError):  # of another user, or deleted in the meantime
            os.utime(path)
        return found if found.dtype == FINGERPRINT and found.ndim == 1 else np.zeros(0, FINGERPRINT)
    except (OSError, ValueError, EOFError):  # not there, or damaged
        return np.zeros(0, FINGERPRINT)


def _save(path: Path, prints: NDArray[Any]) -> None:
    try:
        write_atomically(path, lambda file: np.save(file, prints))
    except OSError as error:
        log.warning("%s: fingerprints cannot be kept (%s); the next audit computes them again", path, error)


def _forget_unused(folder: Path) -> None:
    """Delete fingerprints that nobody used for long."""
    for path in folder.glob("*.npy"):
        with suppress(OSError):  # of another user, or deleted by another audit
            if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                path.unlink()


def _grey(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    image = PilImage.fromarray(pixels).convert("L").resize((side, side), PilImage.Resampling.BOX)
    return np.asarray(image)


def _hash(pixels: NDArray[np.uint8]) -> int:
    """Return the signs of the 8 x 8 lowest cosine frequencies of a 32 x 32 thumbnail, relative to their median."""
    basis = _cosines()
    low = (basis @ _grey(pixels, 32).astype(np.float64) @ basis.T).ravel()[1:]  # without the mean
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> NDArray[np.float64]:
    """Return the first 8 rows of a cosine transform, (8, 32)."""
    place, frequency = np.arange(32)[None, :], np.arange(8)[:, None]
    waves: NDArray[np.float64] = np.cos(np.pi * (2 * place + 1) * frequency / 64)
    return waves
