"""Find photographs that occur twice: within a dataset, across datasets, and in both train and test.

Clean images are compared by content, since copies of a scene may differ in format. Perceptual hashes (signs of 63 low
cosine frequencies) that differ in at most 10 bits give candidates, and the correlation of 16 x 16 grey thumbnails
confirms them. Copies that were resized, recompressed, brightened or lightly filtered are found; mirrored, rotated or
strongly cropped ones are not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.manifest import ManifestRow, Member
from shards.processes import RowsCallback, TaskRunner, count_rows, run_inline
from shards.progress import ProgressCallback

NEAR_BITS = 10
NEAR_CORRELATION = 0.97
_THUMBNAIL = 16
_FLAT = 1.5  # grey levels: a thumbnail with less variation (plain sky, black) is not compared
_ROWS = 512  # rows of the distance matrix in memory at a time


@dataclass(frozen=True)
class CleanImage:
    """One clean image of a split, and its samples."""

    uri: str
    row: ManifestRow
    """First of its rows."""
    split: str
    ids: tuple[str, ...]
    """Ids of all its samples."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two clean images of the same photograph."""

    first: CleanImage
    second: CleanImage
    exact: bool
    """Whether all pixels are equal as 8-bit RGB."""
    correlation: float
    """Correlation of the grey thumbnails."""

    @property
    def leaks(self) -> bool:
        """Whether one is a training image and the other a test image."""
        return self.first.split != self.second.split


@dataclass(frozen=True)
class Fingerprints:
    """Features for the comparison, one row per image."""

    exact: tuple[str, ...]
    hashes: NDArray[np.uint64]  # (n,)
    thumbnails: NDArray[np.float32]  # (n, 256)  zero mean, unit length; zero where flat


@dataclass(frozen=True)
class FingerprintTask:
    """Clean images of one shard to fingerprint."""

    uri: str
    digest: str
    cache: Path
    cache_bytes: int
    rows: tuple[ManifestRow, ...]


def clean_images(dataset: Dataset) -> list[CleanImage]:
    """Return every clean image of the datasets once per split, in manifest order."""
    found: list[CleanImage] = []
    for uri, manifest in zip(dataset.uris, dataset.manifests, strict=True):
        held: dict[tuple[Member, str], list[ManifestRow]] = {}
        for row in manifest.rows:
            held.setdefault((row.clean, row.split), []).append(row)
        found += [
            CleanImage(uri, rows[0], split, tuple(row.id for row in rows))
            for (_, split), rows in held.items()
        ]
    return found


def audit(
    dataset: Dataset,
    cache: ShardCache,
    *,
    runner: TaskRunner = run_inline,
    on_progress: ProgressCallback | None = None,
) -> list[DuplicatePair]:
    """Return all pairs of clean images of the same photograph, leaks between train and test first."""
    known = clean_images(dataset)
    digests = dict(zip(dataset.uris, dataset.digests, strict=True))
    by_shard: dict[tuple[str, int], list[int]] = {}
    for index, image in enumerate(known):
        by_shard.setdefault((image.uri, image.row.clean.shard), []).append(index)
    tasks = [
        FingerprintTask(
            uri, digests[uri], cache.folder, cache.max_bytes, tuple(known[i].row for i in indices)
        )
        for (uri, _), indices in by_shard.items()
    ]
    exact = [""] * len(known)
    hashes = np.zeros(len(known), np.uint64)
    thumbnails = np.zeros((len(known), _THUMBNAIL**2), np.float32)
    indices_of = list(by_shard.values())
    for number, prints in runner(fingerprint, tasks, count_rows(on_progress, len(known))):
        indices = indices_of[number]
        hashes[indices], thumbnails[indices] = prints.hashes, prints.thumbnails
        for index, digest in zip(indices, prints.exact, strict=True):
            exact[index] = digest
    duplicates = [
        DuplicatePair(known[i], known[j], exact[i] == exact[j], correlation)
        for i, j, correlation in similar_pairs(Fingerprints(tuple(exact), hashes, thumbnails))
    ]
    return sorted(duplicates, key=lambda pair: (not pair.leaks, not pair.exact, -pair.correlation))


def leaked_test_samples(duplicates: Sequence[DuplicatePair]) -> Counter[str]:
    """Return the number of test samples whose photograph is also a training image, by URI of the test set."""
    seen: dict[tuple[str, Member], int] = {}
    for pair in duplicates:
        if pair.leaks:
            tested = pair.first if pair.first.split == "test" else pair.second
            seen[tested.uri, tested.row.clean] = len(tested.ids)
    counted: Counter[str] = Counter()
    for (uri, _), samples in seen.items():
        counted[uri] += samples
    return counted


def fingerprint(task: FingerprintTask, on_rows: RowsCallback) -> Fingerprints:
    """Return the fingerprints of a task's images."""
    dataset = Dataset([task.uri], ShardCache(task.cache, task.cache_bytes), [task.digest])
    exact, hashes, thumbnails = [], [], []
    for row in task.rows:
        pixels = dataset.clean_for_display(row)
        exact.append(hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest())
        hashes.append(_hash(pixels))
        thumbnails.append(_thumbnail(pixels))
        on_rows(1, row.id)
    return Fingerprints(tuple(exact), np.array(hashes, np.uint64), np.stack(thumbnails))


def similar_pairs(prints: Fingerprints) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs i < j of equal photographs, with the correlation of their thumbnails."""
    count = len(prints.exact)
    by_digest: dict[str, int] = {}
    numbers = np.array([by_digest.setdefault(digest, len(by_digest)) for digest in prints.exact])
    for start in range(0, count, _ROWS):
        rows = slice(start, min(start + _ROWS, count))
        bits = np.bitwise_count(prints.hashes[rows, None] ^ prints.hashes[None, start:])  # (rows, n - start)
        equal = numbers[rows, None] == numbers[None, start:]
        here, there = np.nonzero((bits <= NEAR_BITS) | equal)
        later = here < there
        here, there = here[later] + start, there[later] + start
        correlations = np.einsum("ij,ij->i", prints.thumbnails[here], prints.thumbnails[there])
        for i, j, correlation in zip(here.tolist(), there.tolist(), correlations.tolist(), strict=True):
            if numbers[i] == numbers[j]:
                yield i, j, 1.0
            elif correlation >= NEAR_CORRELATION:
                yield i, j, correlation


def _grey(pixels: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    image = PilImage.fromarray(pixels).convert("L").resize((side, side), PilImage.Resampling.BOX)
    return np.asarray(image, np.float64)


def _hash(pixels: NDArray[np.uint8]) -> int:
    """Return the signs of the 8 x 8 lowest cosine frequencies of a 32 x 32 thumbnail, relative to their median."""
    basis = _cosines()
    low = (basis @ _grey(pixels, 32) @ basis.T).ravel()[1:]  # without the mean
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> NDArray[np.float64]:
    """Return the first 8 rows of a cosine transform, (8, 32)."""
    place, frequency = np.arange(32)[None, :], np.arange(8)[:, None]
    waves: NDArray[np.float64] = np.cos(np.pi * (2 * place + 1) * frequency / 64)
    return waves


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = _grey(pixels, _THUMBNAIL).ravel()
    small -= small.mean()
    length = float(np.sqrt((small**2).sum()))
    flat = length < _FLAT * _THUMBNAIL
    result: NDArray[np.float32] = (
        np.zeros(small.shape, np.float32) if flat else (small / length).astype(np.float32)
    )
    return result
