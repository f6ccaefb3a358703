"""What one replica does with an image file: decode, batch by size, restore, encode.

Nothing here blocks the event loop: files are unpacked and packed in two threads, and one thread computes. A replica
keeps the models of the last two versions, so that requests that began before a promotion end as they began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from mirage.restore import WHOLE_BYTES, whole_bytes
from mirage.weights import WeightsError, loads
from orchestrator.errors import PhotoError, ResultError
from orchestrator.imaging.photos import Limits, Photo, decode, encode
from orchestrator.restoration.restorer import Restorer, choose_device
from orchestrator.serving.batching import Batcher, Wanted
from orchestrator.serving.smoke_test import problem_of, warm_up

KEPT_MODELS = 2
FILE_THREADS = 2

Fetch = Callable[[], Awaitable[bytes]]
"""Brings the weights of the model that a request names; called only when the replica lacks them."""


@dataclass(frozen=True)
class Answer:
    """A restored file, and where its time went [s]."""

    data: bytes
    format: str
    seconds: dict[str, float]
    """decode, wait, restore, encode."""
    batch: int
    """How many images the model restored at once."""


@dataclass(frozen=True)
class Refusal:
    """Why there is no restored file. `fault` tells whose it is: the file's, or the model's."""

    reason: str
    fault: str = "file"


@dataclass(frozen=True)
class _Kind:
    """What may share a batch."""

    restorer: Restorer
    height: int
    width: int


@dataclass(frozen=True)
class _Restored:
    pixels: NDArray[np.float32]
    began: float
    seconds: float
    batch: int


class _UnwantedError(Exception):
    """Nobody waits for this batch any more."""


class Replica:
    """Restores image files with the models that it is given."""

    def __init__(self, limits: Limits, max_batch: int, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._limits = limits
        self._max_batch = max_batch
        self._device = choose_device(device)
        warm_up()
        self._restorers: dict[str, Restorer] = {}
        self._loading = asyncio.Lock()
        self._compute = ThreadPoolExecutor(1, "restore")
        self._files = ThreadPoolExecutor(FILE_THREADS, "files")
        self._batcher: Batcher[_Kind, Photo, _Restored] = Batcher(self._run, self._most)

    async def restore(self, data: bytes, digest: str, fetch: Fetch) -> Answer | Refusal:
        """Return the restored file of an image file's bytes."""
        loop = asyncio.get_running_loop()
        start = perf_counter()
        try:
            photo = await loop.run_in_executor(self._files, decode, data, "the image", self._limits)
            restorer = await self._restorer(digest, fetch)
            decoded = perf_counter()
            restored = await self._batcher.submit(_Kind(restorer, *photo.size), photo)
            ended = perf_counter()
            packed = await loop.run_in_executor(self._files, encode, restored.pixels, photo)
        except ResultError as error:
            return Refusal(str(error), fault="model")
        except PhotoError as error:
            return Refusal(str(error))
        seconds = {
            "decode": decoded - start,
            "wait": restored.began - decoded,
            "restore": restored.seconds,
            "encode": perf_counter() - ended,
        }
        return Answer(packed, photo.format, seconds, restored.batch)

    async def try_out(self, digest: str, fetch: Fetch) -> str:
        """Load a model and restore the trial image; return what is wrong with it, or ""."""
        try:
            restorer = await self._restorer(digest, fetch)
        except WeightsError as error:
            return str(error)
        return await asyncio.get_running_loop().run_in_executor(self._compute, problem_of, restorer)

    async def _restorer(self, digest: str, fetch: Fetch) -> Restorer:
        if digest not in self._restorers:
            async with self._loading:
                if digest not in self._restorers:
                    load = partial(loads, await fetch(), device=self._device)
                    network = await asyncio.get_running_loop().run_in_executor(self._files, load)
                    self._restorers[digest] = Restorer(network)
        restorer = self._restorers.pop(digest)
        self._restorers[digest] = restorer  # the newest is last
        while len(self._restorers) > KEPT_MODELS:
            del self._restorers[next(iter(self._restorers))]
        return restorer

    def _most(self, kind: _Kind) -> int:
        """As many images as go through the model whole; an image that needs strips goes alone."""
        image = torch.empty(1, 3, kind.height, kind.width, device="meta")
        return min(max(WHOLE_BYTES // whole_bytes(kind.restorer.model, image), 1), self._max_batch)

    async def _run(self, kind: _Kind, photos: Sequence[Photo], wanted: Wanted) -> list[_Restored]:
        loop = asyncio.get_running_loop()
        began = perf_counter()
        pixels = await loop.run_in_executor(self._compute, _restore, kind.restorer, photos, wanted)
        seconds = perf_counter() - began
        return [_Restored(each, began, seconds, len(photos)) for each in pixels]


def _restore(restorer: Restorer, photos: Sequence[Photo], wanted: Wanted) -> list[NDArray[np.float32]]:
    def check(done: int, total: int) -> None:
        if not wanted():
            raise _UnwantedError

    if len(photos) == 1:
        return [restorer.pixels(photos[0], check)]
    return restorer.pixels_of_several(photos)
