"""Shards on their way into the node's cache before a reader asks for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence

from shards.dataset import Dataset
from shards.errors import ShardsError

log = logging.getLogger(__name__)

PrefetchWindow = tuple[int, Sequence[int]]
"""Position after the last one of a window, and the shards that the window reads."""


class Prefetcher:
    """A thread that fetches the window that is being read and the next one, and then waits for the reader.

    The cache lets one process of a node fetch each shard, so every worker may have a prefetcher. What cannot be
    fetched is left to the reader, who says so.
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
        """Tell that the stream has come to a position."""
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
        """Shards to fetch, each when its time has come: when the window before its own is being read."""
        ends = [-1, -1]  # of the two windows before
        for end, shards in self._windows:
            with self._moved:
                while not self._stopped and self._position < ends[0]:
                    self._moved.wait()
            if self._stopped:
                return
            yield from shards
            ends = [ends[1], end]
