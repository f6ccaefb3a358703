"""Batches of a training run: order + dataset → the same global stream for any workers, readers and
interruptions.

    position ── order ──▶ row ── window, orientation ──▶ uint8 pixels ── batch ──▶ device: float, noise

Readers deliver uint8. Noise and the conversion to float happen on the device that trains. Everything random
is keyed by the position.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from shards.augment import Augmentation, crop16, draw_mode, draw_window, keyed_rng, orient
from shards.dataset import Dataset
from shards.errors import MixtureError, ShardsError
from shards.manifest import Row
from shards.noise import add_noise
from shards.order import Entry, Mixture, SampleOrder, Sampling, Tail, share
from shards.sample import SIGMA


@dataclass(frozen=True, slots=True)
class Batch:
    """One worker's part of a global micro-batch. Axes: b images of this share, h w pixels."""

    degraded: Tensor
    """(b, 3, h, w) uint8; equal to `clean` where noise is still to be drawn."""
    clean: Tensor
    """(b, 3, h, w) uint8"""
    sigma: Tensor
    """(b,) float32, grey levels; 0 where no noise is drawn"""
    positions: Tensor
    """(b,) int64, places in the global stream"""
    degradations: list[str]
    ids: list[str]
    share: tuple[int, int]
    """First image of this share within the global micro-batch, and the size of that."""

    def floats(self, device: torch.device | str, seed: int) -> tuple[Tensor, Tensor]:
        """Degraded and clean as float32 RGB in [0, 1] on a device, noise drawn there, keyed by position."""
        noisy = self.sigma.nonzero().flatten()  # found here, on the CPU: no wait for the device
        degraded, clean = (image.to(device, non_blocking=True) for image in (self.degraded, self.clean))
        if len(noisy):
            rows = noisy.to(device, non_blocking=True)
            sigma, keys = (t[noisy].to(device, non_blocking=True) for t in (self.sigma, self.positions))
            degraded = degraded.index_copy(0, rows, add_noise(clean[rows], sigma, keys, seed))
        return degraded.float() / 255, clean.float() / 255

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return replace(
            self,
            degraded=self.degraded.pin_memory(),
            clean=self.clean.pin_memory(),
            sigma=self.sigma.pin_memory(),
            positions=self.positions.pin_memory(),
        )


class TrainStream:
    """Training samples of a dataset, mixed by `(degradation, repeat)` pairs.

    A step's global batch is cut into `micro_batches` of equal size, which the workers share. `readers`
    subprocesses prepare batches ahead; 0 prepares them in this process. `ledger` names a folder where every
    worker writes what it consumed. Images too small for the crop are reported at once, by name.
    """

    def __init__(
        self,
        dataset: Dataset,
        mixture: Sequence[tuple[str, int]],
        *,
        seed: int,
        crop_pixels: int,
        augmentation: Augmentation = "release",
        global_batch_size: int,
        micro_batches: int = 1,
        tail: Tail = "drop",
        sampling: Sampling = "permutation",
        readers: int = 0,
        ledger: Path | None = None,
    ) -> None:
        self.dataset, self.seed, self.crop_pixels = dataset, seed, crop_pixels
        self.augmentation: Augmentation = augmentation
        self.readers, self.ledger = readers, ledger
        self._rows = [dataset.rows("train", degradation) for degradation, _ in mixture]
        for (degradation, _), rows in zip(mixture, self._rows, strict=True):
            if not rows:
                raise MixtureError(
                    f"{', '.join(dataset.uris)}: no training samples of {degradation!r}; there are "
                    f"{dataset.available('train')}. Pack it, or take it out of the mixture."
                )
            _check_sizes(rows, crop_pixels)
        entries = tuple(
            Entry(name, len(rows), repeat) for (name, repeat), rows in zip(mixture, self._rows, strict=True)
        )
        self.order = SampleOrder(Mixture(entries), seed, global_batch_size, tail, sampling)
        if global_batch_size % micro_batches:
            raise MixtureError(
                f"micro_batches: {micro_batches} does not divide the global batch of {global_batch_size}."
            )
        self.micro_batch_size = global_batch_size // micro_batches

    def steps(
        self,
        start_position: int = 0,
        world_size: int = 1,
        rank: int = 0,
        stop_position: int | None = None,
    ) -> Iterator[Batch]:
        """This worker's part of every micro-batch from a position on, for all whole ones before the stop.

        A step takes `micro_batches` of them; positions run through them without a gap.
        """
        total = self.micro_batch_size
        offset, count = share(total, world_size, rank)
        reader = _Reader(self, start_position + offset, count, offset)
        numbers = (
            itertools.count() if stop_position is None else range((stop_position - start_position) // total)
        )
        for batch in self._batches(reader, numbers):
            if self.ledger is not None:
                _record(self.ledger / f"worker-{rank}-of-{world_size}.jsonl", batch)
            yield batch

    def batch(self, positions: Sequence[int], offset: int) -> Batch:
        """The samples at the given positions, which start `offset` images into their micro-batch."""
        where = np.asarray(positions, np.int64)
        draw = self.order.draw(where)
        size = self.crop_pixels
        degraded = np.empty((len(where), size, size, 3), np.uint8)
        clean = np.empty_like(degraded)
        degradations, ids = [], []
        for index, (position, entry, sample) in enumerate(zip(where, draw.entry, draw.sample, strict=True)):
            row = self._rows[entry][sample]
            rng = keyed_rng(self.seed, int(position))
            window = draw_window(rng, crop16(row.clean.height, row.clean.width), size)
            mode = draw_mode(rng, self.augmentation)
            harmed, intact = self.dataset.read(row, window)
            clean[index] = orient(intact, mode)
            degraded[index] = clean[index] if harmed is None else orient(harmed, mode)
            degradations.append(self.order.mixture.entries[entry].degradation)
            ids.append(row.id)
        return Batch(
            torch.from_numpy(degraded).permute(0, 3, 1, 2),
            torch.from_numpy(clean).permute(0, 3, 1, 2),
            torch.tensor([float(SIGMA.get(name, 0)) for name in degradations]),
            torch.from_numpy(where),
            degradations,
            ids,
            (offset, self.micro_batch_size),
        )

    def _batches(self, reader: _Reader, numbers: Iterable[int]) -> Iterator[Batch]:
        if self.readers == 0:
            yield from (reader.read(number) for number in numbers)
            return
        # A server process that forks: it does not inherit this process's threads, locks or CUDA context.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["shards.stream"])
        loader = DataLoader(
            reader,
            batch_size=None,
            sampler=numbers,
            num_workers=self.readers,
            multiprocessing_context=context,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in loader:
            if isinstance(batch, ShardsError):
                raise batch
            yield batch


class _Reader(TorchDataset["Batch | ShardsError"]):
    """One worker's micro-batches, numbered from its start, which torch's DataLoader can read elsewhere."""

    def __init__(self, stream: TrainStream, first: int, count: int, offset: int) -> None:
        self._stream, self._first, self._count, self._offset = stream, first, count, offset

    def read(self, number: int) -> Batch:
        first = self._first + number * self._stream.micro_batch_size
        return self._stream.batch(range(first, first + self._count), self._offset)

    def __getitem__(self, number: int) -> Batch | ShardsError:
        # Returned, not raised: DataLoader would wrap the message in a traceback of the subprocess.
        try:
            return self.read(number)
        except ShardsError as error:
            return error


def _check_sizes(rows: Sequence[Row], crop_pixels: int) -> None:
    small = [row for row in rows if min(crop16(row.clean.height, row.clean.width)[2:]) < crop_pixels]
    if small:
        named = ", ".join(f"{row.id} ({row.clean.width} x {row.clean.height})" for row in small[:5])
        raise MixtureError(
            f"{len(small)} of {len(rows)} {small[0].degradation} samples are smaller than a crop of "
            f"{crop_pixels} pixels once cut to multiples of 16: {named}. Lower crop_pixels, or leave "
            "them out."
        )


def _record(path: Path, batch: Batch) -> None:
    samples = list(zip(batch.positions.tolist(), batch.degradations, batch.ids, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(samples) + "\n")


def read_ledger(folder: Path) -> dict[int, tuple[str, str]]:
    """Degradation and id at every position that a run consumed, from the ledgers of all its workers.

    Steps that were repeated after a resume must agree with their first time.
    """
    found: dict[int, tuple[str, str]] = {}
    for path in sorted(folder.glob("worker-*.jsonl")):
        for line in path.read_text().splitlines():
            for position, degradation, id_ in json.loads(line):
                if found.setdefault(position, (degradation, id_)) != (degradation, id_):
                    raise MixtureError(
                        f"{path}: position {position} is {(degradation, id_)}, was {found[position]} before."
                    )
    return found
