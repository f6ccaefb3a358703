"""Download shards into the node's cache before they are read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence

from shards.dataset import Dataset
from shards.errors import ShardsError

log = logging.getLogger(__name__)

PrefetchWindow = tuple[int, Sequence[int]]
"""End position of a window, and its shards."""


class Prefetcher:
    """A thread that downloads the current window and the next one, and then waits for the reader.

    Every worker may have a prefetcher, since the cache lets one process of a node download each shard. Errors are left
    to the reader, which reports them.
    """

    def __init__(self, dataset: Dataset, windows: Iterable[PrefetchWindow]) -> None:
        self._dataset, self._windows = dataset, windows
        self._position = -1
        self._stopped = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify()
        self._thread.join()

    def reached(self, position: int) -> None:
        """Notify the thread that the stream has reached a position."""
        with self._moved:
            self._position = position
            self._moved.notify()

    def _run(self) -> None:
        try:
            for shard in self._due():
                self._dataset.fetch(shard)
                if self._stopped:
                    return
        except ShardsError as error:
            log.info("prefetching ended: %s", error)

    def _due(self) -> Iterator[int]:
        """Yield shards to download, each window while the window before it is read."""
        ends = [-1, -1]  # end positions of the two previous windows
        for end, shards in self._windows:
            with self._moved:
                while not self._stopped and self._position < ends[0]:
                    self._moved.wait()
            if self._stopped:
                return
            yield from shards
            ends = [ends[1], end]
