"""Batches of a training run: the same global stream for any number of workers and readers, also after interruptions.

    position ── order ──▶ row ── window, orientation, pipeline ──▶ uint8 ── batch ──▶ device: float, noise

Readers deliver uint8; noise of the published levels and the conversion to float happen on the training device. All
random choices are seeded by the position.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.augment import (
    Augmentation,
    CropWindow,
    Image,
    centre_window,
    draw_crop,
    draw_orientation,
    keyed_rng,
    orient,
    place_within,
    widened,
)
from shards.crop_schedule import CropSchedule
from shards.dataset import Dataset, DatasetRows
from shards.degradations.pipeline import Pipeline, training_key
from shards.errors import CorruptObjectError, MissingObjectError, MixtureError
from shards.manifest import ManifestRow
from shards.mixture import Mixture, MixtureEntry
from shards.noise import NoiseRule, add_noise
from shards.order import SampleOrder, Sampling, Tail, share
from shards.prefetch import Prefetcher, PrefetchWindow
from shards.readers import read_in_processes
from shards.sample import NOISE, SIGMA
from shards.windows import ShardWindows

log = logging.getLogger(__name__)

OnCorrupt = Literal["fail", "skip"]

_MAX_CONSECUTIVE_SKIPS = 20  # consecutive damaged samples after which a run that skips them stops
_LOOKAHEAD = 4096  # positions per step of the prefetcher


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor of the CPU on a device; the host does not wait until it is copied."""
    if torch.device(device).type == "cuda" and torch.cuda.is_available() and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """One worker's share of a global micro-batch. Axes: b images of the share, h x w pixels."""

    degraded: Tensor
    """(b, 3, h, w) uint8; equal to `clean` where noise will be added."""
    clean: Tensor
    """(b, 3, h, w) uint8."""
    sigma: Tensor
    """(b,) float32, standard deviation of the noise in grey levels; 0: no noise."""
    positions: Tensor
    """(b,) int64, positions in the global stream."""
    degradations: list[str]
    ids: list[str]
    share: tuple[int, int]
    """Index of the share's first image in the global micro-batch, and the size of the micro-batch."""
    skipped: list[tuple[int, str, str, str]] = field(default_factory=list)
    """Position, degradation, id and error of every damaged sample that was replaced."""

    def to_float(
        self, device: torch.device | str, seed: int, rule: NoiseRule = "release"
    ) -> tuple[Tensor, Tensor]:
        """Return degraded and clean as float32 RGB in [0, 1] on a device, with noise added there.

        Noise is seeded by `seed` and position. Under `rule="float"` noisy values may be outside [0, 1].
        """
        noisy = self.sigma.nonzero().flatten()  # on the CPU, so that the host does not wait for the device
        degraded, clean = (to_device(image, device) for image in (self.degraded, self.clean))
        if len(noisy):
            rows = to_device(noisy, device)
            sigma, keys = (to_device(t[noisy], device) for t in (self.sigma, self.positions))
            drawn = add_noise(clean[rows], sigma, keys, seed, rule)
            degraded = degraded.to(drawn.dtype).index_copy(0, rows, drawn)
        return degraded.float() / 255, clean.float() / 255

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; torch's DataLoader calls this."""
        return replace(
            self,
            degraded=self.degraded.pin_memory(),
            clean=self.clean.pin_memory(),
            sigma=self.sigma.pin_memory(),
            positions=self.positions.pin_memory(),
        )


class MicroBatch(NamedTuple):
    """Positions and crop size of a micro-batch of all workers together."""

    first: int
    """Position of the first image."""
    total: int
    """Number of images."""
    pixels: int
    """Side of the crops in pixels."""


class TrainStream:
    """Training samples of a dataset, mixed by `(degradation, repeat)` pairs or by a `Mixture`.

    A step's global batch is divided into `micro_batches` of equal size, which the workers share. `readers` subprocesses
    prepare batches ahead; with 0, this process does. They are replaced when nothing comes from them for
    `reader_timeout_seconds`. `window` is a number of shards, for data larger than the cache
    (`shards.windows`). `stages` change crop and batch size by step, in place of `crop_pixels`. Images are cut to
    multiples of `multiple` pixels before a crop is drawn: 16 in the all-in-one benchmarks, 1 for whole images.
    `on_corrupt="skip"` replaces a damaged or missing sample by another one of the same degradation, the same for every
    worker. `pipelines` degrade clean photographs, those of the noise levels, under their names: the crop after it was
    oriented, so that rain falls as in a whole photograph. They also get `margin` pixels around it, which are cut off
    after them.

    Raises MixtureError for a mixture without samples, for images smaller than the crop, and for impossible batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        mixture: Mixture | Sequence[tuple[str, int]],
        *,
        seed: int,
        crop_pixels: int = 128,
        augmentation: Augmentation = "release",
        global_batch_size: int,
        micro_batches: int = 1,
        tail: Tail = "drop",
        sampling: Sampling = "permutation",
        window: int | None = None,
        stages: CropSchedule | None = None,
        multiple: int = 16,
        on_corrupt: OnCorrupt = "fail",
        readers: int = 0,
        reader_timeout_seconds: float = 150.0,
        pipelines: Mapping[str, Pipeline] | None = None,
        margin: int = 0,
    ) -> None:
        self.pipelines, self.margin = dict(pipelines or {}), margin
        self.dataset, self.seed, self.multiple = dataset, seed, multiple
        self.augmentation: Augmentation = augmentation
        self.on_corrupt = on_corrupt
        self.readers, self.reader_timeout_seconds = readers, reader_timeout_seconds
        self.stages = stages or CropSchedule.constant(crop_pixels, global_batch_size)
        if isinstance(mixture, Mixture):
            self._rows = [self._training_rows(entry.degradation) for entry in mixture.entries]
            mixed = mixture
        else:
            self._rows = [self._training_rows(degradation) for degradation, _ in mixture]
            mixed = Mixture(
                tuple(MixtureEntry(d, len(rows), n) for (d, n), rows in zip(mixture, self._rows, strict=True))
            )
        for entry, rows in zip(mixed.entries, self._rows, strict=True):
            if entry.count != len(rows):
                raise MixtureError(
                    f"the mixture counts {entry.count} samples of {entry.degradation!r}, and the data has "
                    f"{len(rows)}."
                )
        for stage in self.stages.stages:
            if stage.batch % micro_batches:
                raise MixtureError(
                    f"micro_batches: {micro_batches} does not divide the global batch of {stage.batch}."
                )
        windows = None if window is None else ShardWindows(self._shards(), window)
        self.order = SampleOrder(mixed, seed, global_batch_size, tail, sampling, windows)
        self.micro_batches = micro_batches
        self._warn_if_cache_is_small(window)

    def _training_rows(self, degradation: str) -> DatasetRows:
        rows = self.dataset.rows("train", NOISE if degradation in self.pipelines else degradation)
        if not rows:
            raise MixtureError(
                f"{', '.join(self.dataset.uris)}: no training samples of {degradation!r}; there are "
                f"{self.dataset.available('train')}. Pack it, or remove it from the mixture."
            )
        _check_sizes(rows, max(stage.pixels for stage in self.stages.stages), self.multiple)
        return rows

    def steps(
        self,
        start_position: int = 0,
        world_size: int = 1,
        rank: int = 0,
        stop_position: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Iterator[Batch]:
        """Yield this worker's share of every micro-batch from a position on.

        The last one is the last complete micro-batch before `stop_position`. A step has `micro_batches` of them. While
        `stopping`, readers that hang are replaced soon.
        """
        with Prefetcher(self.dataset, self._ahead(start_position)) as prefetcher:
            reader = _WorkerShare(self, world_size, rank)
            for batch in self._batches(reader, start_position, stop_position, stopping):
                prefetcher.reached(int(batch.positions[0]))
                for position, degradation, id_, why in batch.skipped:
                    log.warning(
                        "position %d: replaced damaged sample %s of %s: %s", position, id_, degradation, why
                    )
                yield batch

    def parts(self, start_position: int = 0, stop_position: int | None = None) -> Iterator[MicroBatch]:
        """Yield all micro-batches from a position on."""
        position = start_position
        while True:
            stage = self.stages.at_position(position)
            total = stage.batch // self.micro_batches
            if stop_position is not None and position + total > stop_position:
                return
            yield MicroBatch(position, total, stage.pixels)
            position += total

    def batch(self, positions: Sequence[int], offset: int, part: MicroBatch) -> Batch:
        """Return the samples at the given positions, which start `offset` images into the micro-batch `part`."""
        where = np.asarray(positions, np.int64)
        draw = self.order.draw(where)
        size = part.pixels
        degraded = np.empty((len(where), size, size, 3), np.uint8)
        clean = np.empty_like(degraded)
        degradations, ids, skipped = [], [], []
        for index, (position, entry, sample) in enumerate(
            zip(where.tolist(), draw.entry.tolist(), draw.sample.tolist(), strict=True)
        ):
            degradation = self.order.mixture.entries[entry].degradation
            row, (degraded_crop, clean_crop, inner), lost = self._read(position, entry, sample, size)
            clean[index] = inner.of(clean_crop)
            if degradation in self.pipelines:
                key = training_key(self.seed, position)
                degraded[index] = inner.of(self.pipelines[degradation].degrade(clean_crop, key))
            else:
                degraded[index] = clean_crop if degraded_crop is None else degraded_crop
            degradations.append(degradation)
            ids.append(row.id)
            skipped += [(position, degradation, id_, why) for id_, why in lost]
        return Batch(
            torch.from_numpy(degraded).permute(0, 3, 1, 2),
            torch.from_numpy(clean).permute(0, 3, 1, 2),
            torch.tensor([float(SIGMA.get(name, 0)) for name in degradations]),
            torch.from_numpy(where),
            degradations,
            ids,
            (offset, part.total),
            skipped,
        )

    def crop(
        self, position: int, row: ManifestRow, size: int, margin: int = 0
    ) -> tuple[Image | None, Image, CropWindow]:
        """Return the crop of a row at a position, degraded (None in a clean-only row) and clean.

        Both have a margin as far as the image reaches; the third value says where the `size` x `size` pixels are.
        """
        rng = keyed_rng(self.seed, position)
        window = draw_crop(rng, centre_window(row.clean.height, row.clean.width, self.multiple), size)
        mode = draw_orientation(rng, self.augmentation)
        around = widened(window, margin, row.clean.height, row.clean.width)
        degraded, clean = self.dataset.read(row, around)
        inner = place_within(window, around, mode) if margin else CropWindow(0, 0, size, size)
        return None if degraded is None else orient(degraded, mode), orient(clean, mode), inner

    def _read(
        self, position: int, entry: int, sample: int, size: int
    ) -> tuple[ManifestRow, tuple[Image | None, Image, CropWindow], list[tuple[str, str]]]:
        """Return row and crop at a position, and id and error of each row that could not be read there."""
        margin = self.margin if self.order.mixture.entries[entry].degradation in self.pipelines else 0
        lost: list[tuple[str, str]] = []
        for attempt in range(_MAX_CONSECUTIVE_SKIPS):
            row = self._rows[entry][sample]
            try:
                return row, self.crop(position, row, size, margin), lost
            except (CorruptObjectError, MissingObjectError) as error:
                if self.on_corrupt == "fail":
                    raise
                lost.append((row.id, str(error)))
                sample = self.order.substitute(position, attempt, entry)
        raise CorruptObjectError(
            f"position {position}: {_MAX_CONSECUTIVE_SKIPS} consecutive samples cannot be read; the last: {lost[-1][1]}"
        )

    def _batches(
        self,
        reader: _WorkerShare,
        start_position: int,
        stop_position: int | None,
        stopping: Callable[[], bool],
    ) -> Iterator[Batch]:
        if self.readers == 0:
            pin = torch.cuda.is_available()
            for part in self.parts(start_position, stop_position):
                batch = reader.read(part)
                yield batch.pin_memory() if pin else batch
            return
        yield from read_in_processes(
            reader.read,
            lambda done: islice(self.parts(start_position, stop_position), done, None),
            self.readers,
            timeout_seconds=self.reader_timeout_seconds,
            stopping=stopping,
        )

    def _shards(self) -> list[NDArray[np.int64]]:
        return [rows.clean_shards() for rows in self._rows]

    def _ahead(self, start_position: int) -> Iterator[PrefetchWindow]:
        """Yield the shards to prefetch: by window, or all of them in the order of first use if the cache holds all."""
        total, _, room = self.dataset.remote_bytes()
        if total == 0:
            return
        if self.order.windows is not None:
            yield from self.order.windows.ahead(self.order, start_position)
        elif total <= room:
            shards = self._shards()
            seen: set[int] = set()
            end = start_position + self.order.positions_per_epoch
            for first in range(start_position, end, _LOOKAHEAD):
                draw = self.order.draw(np.arange(first, min(end, first + _LOOKAHEAD)))
                needed = [int(shards[e][s]) for e, s in zip(draw.entry, draw.sample, strict=True)]
                yield start_position, [shard for shard in dict.fromkeys(needed) if shard not in seen]
                seen.update(needed)

    def _warn_if_cache_is_small(self, window: int | None) -> None:
        total, largest, room = self.dataset.remote_bytes()
        needed = total if window is None else min(total, 2 * window * largest)
        if needed > room:
            what = "the data" if window is None else f"two windows of {window} shards"
            log.warning(
                "%s may take %.1f GiB, and the cache holds %.1f: shards will be downloaded repeatedly. "
                "Raise cache_gib, or %s window.",
                *(what, needed / 2**30, room / 2**30, "set a" if window is None else "lower the"),
            )


class _WorkerShare:
    """One worker's share of any micro-batch."""

    def __init__(self, stream: TrainStream, world_size: int, rank: int) -> None:
        self._stream, self._world_size, self._rank = stream, world_size, rank

    def read(self, part: MicroBatch) -> Batch:
        """Return this worker's share of a micro-batch."""
        offset, count = share(part.total, self._world_size, self._rank)
        return self._stream.batch(range(part.first + offset, part.first + offset + count), offset, part)


def _check_sizes(rows: DatasetRows, crop_pixels: int, multiple: int) -> None:
    sides = (np.minimum(images["height"], images["width"]) for images in rows.clean_images())
    small = np.flatnonzero(np.concatenate([side - side % multiple < crop_pixels for side in sides]))
    if len(small):
        named = ", ".join(
            f"{row.id} ({row.clean.width} x {row.clean.height})"
            for row in (rows[int(index)] for index in small[:5])
        )
        raise MixtureError(
            f"{len(small)} of {len(rows)} {rows[int(small[0])].degradation} samples are smaller than a crop of "
            f"{crop_pixels} pixels once cut to multiples of {multiple}: {named}. Lower crop_pixels, or leave "
            "them out."
        )
