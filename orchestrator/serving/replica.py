"""What one replica does with an image file: decode, batch by size, restore, encode.

Nothing blocks the event loop: two threads decode and encode files, one thread computes. A replica keeps the last two
models, so that requests that started before a promotion end with the model that they started with.
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

from mirage.inference import WHOLE_BYTES
from mirage.weights import WeightsError
from orchestrator.errors import ModelError, PhotoError, ResultError
from orchestrator.imaging.photos import Limits, Photo, decode, encode, image_size
from orchestrator.models.network_file import loads
from orchestrator.restoration.restorer import Restorer, choose_device
from orchestrator.serving.batching import Batcher, StillWanted
from orchestrator.serving.pixel_budget import PixelBudget
from orchestrator.serving.smoke_test import find_problem, warm_up

KEPT_MODELS = 2
FILE_THREADS = 2
MIN_PIXELS = 32_000_000
"""A replica holds decoded images of at most this many pixels, or of two of the largest ones: about 0.5 GB."""

FetchWeights = Callable[[], Awaitable[bytes]]
"""Returns the weights of the model that a request names; called only when the replica does not have them."""


@dataclass(frozen=True)
class RestoredImage:
    """A restored image file."""

    data: bytes
    format: str
    seconds: dict[str, float]
    """Time of each part: decode, wait, restore, encode."""
    batch: int
    """Number of images in the batch."""


@dataclass(frozen=True)
class RestoreFailure:
    """Why an image was not restored."""

    reason: str
    fault: str = "file"
    """What is at fault: "file" or "model"."""


@dataclass(frozen=True)
class _BatchKey:
    """What the images of a batch have in common."""

    restorer: Restorer
    height: int
    width: int


@dataclass(frozen=True)
class _BatchResult:
    pixels: NDArray[np.float32]
    began: float
    seconds: float
    batch: int


class _CancelledError(Exception):
    """No caller waits for this batch any more."""


class Replica:
    """Restorer of image files, with the models that requests name."""

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
        self._pixels = PixelBudget(max(2 * limits.pixels, MIN_PIXELS))
        self._batcher: Batcher[_BatchKey, Photo, _BatchResult] = Batcher(self._run_batch, self._batch_limit)

    async def restore(self, data: bytes, digest: str, fetch: FetchWeights) -> RestoredImage | RestoreFailure:
        """Restore an image file with the model of this digest."""
        pixels = await asyncio.get_running_loop().run_in_executor(self._files, pixels_in_header, data)
        # A caller that leaves frees its pixels, and what waits for a thread then is dropped. A thread that has begun
        # ends its work, so up to FILE_THREADS images more are in memory for that time.
        async with self._pixels.reserve(pixels):
            return await self._restore(data, digest, fetch)

    async def _restore(self, data: bytes, digest: str, fetch: FetchWeights) -> RestoredImage | RestoreFailure:
        loop = asyncio.get_running_loop()
        start = perf_counter()
        try:
            photo = await loop.run_in_executor(self._files, decode, data, "the image", self._limits)
            restorer = await self._restorer(digest, fetch)
            decoded = perf_counter()
            result = await self._batcher.submit(_BatchKey(restorer, *photo.size), photo)
            ended = perf_counter()
            encoded = await loop.run_in_executor(self._files, encode, result.pixels, photo)
        except ResultError as error:
            return RestoreFailure(str(error), fault="model")
        except PhotoError as error:
            return RestoreFailure(str(error))
        seconds = {
            "decode": decoded - start,
            "wait": result.began - decoded,
            "restore": result.seconds,
            "encode": perf_counter() - ended,
        }
        return RestoredImage(encoded, photo.result_format, seconds, result.batch)

    async def smoke_test(self, digest: str, fetch: FetchWeights) -> str:
        """Load a model and restore the probe image; return what is wrong with the model, or ""."""
        try:
            restorer = await self._restorer(digest, fetch)
        except (WeightsError, ModelError) as error:
            return str(error)
        return await asyncio.get_running_loop().run_in_executor(self._compute, find_problem, restorer)

    async def _restorer(self, digest: str, fetch: FetchWeights) -> Restorer:
        if digest not in self._restorers:
            async with self._loading:
                if digest not in self._restorers:
                    load = partial(loads, await fetch(), self._device, trusted="all")
                    network = await asyncio.get_running_loop().run_in_executor(self._files, load)
                    self._restorers[digest] = Restorer(network)
        restorer = self._restorers.pop(digest)
        self._restorers[digest] = restorer  # the newest is last
        while len(self._restorers) > KEPT_MODELS:
            del self._restorers[next(iter(self._restorers))]
        return restorer

    def _batch_limit(self, key: _BatchKey) -> int:
        """Return how many images of this size to restore together; an image that needs strips runs alone.

        So does each image where the memory of a batch is not known.
        """
        image = torch.empty(1, 3, key.height, key.width, device="meta")
        size = key.restorer.network.whole_bytes(image) or WHOLE_BYTES
        return min(max(WHOLE_BYTES // size, 1), self._max_batch)

    async def _run_batch(
        self, key: _BatchKey, photos: Sequence[Photo], still_wanted: StillWanted
    ) -> list[_BatchResult]:
        loop = asyncio.get_running_loop()
        began = perf_counter()
        pixels = await loop.run_in_executor(self._compute, _restore, key.restorer, photos, still_wanted)
        seconds = perf_counter() - began
        return [_BatchResult(each, began, seconds, len(photos)) for each in pixels]


def _restore(
    restorer: Restorer, photos: Sequence[Photo], still_wanted: StillWanted
) -> list[NDArray[np.float32]]:
    def check(done: int, total: int) -> None:
        if not still_wanted():
            raise _CancelledError

    check(0, 1)
    return restorer.pixels_of_several(photos, check)


def pixels_in_header(data: bytes) -> int:
    """Return height times width as the header of an image file says, 0 if it cannot be read."""
    try:
        height, width = image_size(data, "the image")
    except PhotoError:  # decoding tells what is wrong
        return 0
    return height * width
