"""The loop beside the HTTP routes: count the replicas, and poll the alias or look at it when told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum, auto
from queue import Empty, SimpleQueue

from orchestrator.serving.alias_watcher import AliasWatcher
from orchestrator.serving.settings import POLL_SECONDS


class _Signal(Enum):
    LOOK = auto()
    STOP = auto()


class ServiceMonitor:
    """Loop that counts replicas at least every 3 s, and polls the alias every `poll_seconds`.

    `look_now` and `stop` may be called from any thread and from a signal handler.
    """

    def __init__(
        self, count_replicas: Callable[[], None], watcher: AliasWatcher | None, poll_seconds: float
    ) -> None:
        self._count_replicas = count_replicas
        self._watcher = watcher
        self._poll_seconds = poll_seconds
        self._signals: SimpleQueue[_Signal] = SimpleQueue()  # unlike an Event, safe in signal handlers

    def look_now(self) -> None:
        """Let the loop poll the alias at once."""
        self._signals.put(_Signal.LOOK)

    def stop(self) -> None:
        """End the loop after the step that it is in."""
        self._signals.put(_Signal.STOP)

    def run(self, check: Callable[[], None] = lambda: None) -> None:
        """Run until `stop`; `check` is called in every step, and what it raises ends the loop."""
        next_poll = time.monotonic() + self._poll_seconds
        while True:
            signals = self._wait(min(self._poll_seconds, POLL_SECONDS))
            if _Signal.STOP in signals:
                return
            check()
            self._count_replicas()
            if self._watcher and (_Signal.LOOK in signals or time.monotonic() >= next_poll):
                self._watcher.poll()
                next_poll = time.monotonic() + self._poll_seconds

    def _wait(self, seconds: float) -> set[_Signal]:
        """Return the signals that arrived, as soon as there is one; none after `seconds`."""
        received: set[_Signal] = set()
        try:
            received.add(self._signals.get(timeout=seconds))
            while True:
                received.add(self._signals.get_nowait())
        except Empty:
            return received
