"""Limit the pixels that a replica holds at a time: requests wait in order until there is room for theirs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PixelBudget:
    """A semaphore in units of pixels; used from one event loop. An image larger than all of it waits to be alone."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def reserve(self, pixels: int) -> AsyncIterator[None]:
        """Hold `pixels` for the time of the block. A cancelled caller gives up its turn."""
        pixels = min(pixels, self._all)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        self._grant()
        try:
            await future
            yield
        finally:
            if future.done() and not future.cancelled():
                self._free += pixels
            future.cancel()
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            pixels, future = self._waiting[0]
            if not future.done() and pixels > self._free:
                return
            self._waiting.popleft()
            if not future.done():
                self._free -= pixels
                future.set_result(None)
