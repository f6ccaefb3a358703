"""Keep the record of a run up to date while it runs, without slowing or failing it."""

from __future__ import annotations

import copy
import io
import logging
import socket
import threading
import time
from collections.abc import Callable

from PIL import Image

from orchestrator import events
from orchestrator.errors import OwnedError
from orchestrator.events import Event
from orchestrator.history.record import Facts, History, State
from orchestrator.history.store import (
    FOLDER,
    read_history,
    write_history,
    write_sheet,
    write_status,
)
from orchestrator.ownership import Lease
from shards.errors import ShardsError
from shards.store import Store

log = logging.getLogger(__name__)

WRITE_SECONDS = 10.0
"""Time between two writes of the state. The whole record is written with each validation and checkpoint as well."""
_QUALITY = 88


class Recorder:
    """Takes the events of a run; a thread writes its record to the store.

    While the store fails, the record is kept in memory. Once another process owns the run, nothing more is written.
    """

    def __init__(
        self,
        store: Store,
        facts: Facts,
        lease: Lease,
        code_version: str,
        workers: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`workers`: how many train from the beginning, before any event tells."""
        self._store, self._lease, self._clock = store, lease, clock
        self._lock = threading.Lock()
        self._sheet: bytes | None = None
        self._new = self._whole = True
        self._failing = False
        self.history = read_history(store) or History(facts)
        self.history.begin(facts, socket.gethostname(), code_version, workers, clock())
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_until_closed, name="recorder", daemon=True)
        self._thread.start()

    def add(self, event: Event) -> None:
        """Take an event; this neither waits nor raises."""
        with self._lock:
            self.history.add(event, self._clock())
            self._new = True
            if isinstance(event, events.Image) and event.name == "sheet":
                self._sheet = event.png
            self._whole |= isinstance(event, events.Validation | events.CheckpointWritten)

    def close(self, state: State, reason: str = "") -> bool:
        """Note the end of this process and write the record; return whether the run is still this process's own.

        Once closed, it stays as it is.
        """
        if not self._closing.is_set():
            self.abandon()
            self.history.end(state, reason, self._clock())
            self._new = self._whole = True
        return self._write()

    def abandon(self) -> None:
        """Write nothing more in the background."""
        self._closing.set()
        self._thread.join()

    def _write_until_closed(self) -> None:
        owned = self._write()
        while owned and not self._closing.wait(WRITE_SECONDS):
            owned = self._write()

    def _write(self) -> bool:
        """Write what is new; return False once another process owns the run."""
        with self._lock:
            new, whole, png = self._new, self._whole, self._sheet
            self._new, self._whole, self._sheet = False, False, None
        try:
            self._lease.check()
            if png is not None:
                write_sheet(self._store, jpeg(png))
            with self._lock:
                history, status = copy.deepcopy(self.history) if whole else None, self.history.status()
            if history is not None:
                write_history(self._store, history)
            if new:
                write_status(self._store, status)
        except OwnedError:
            return False
        except (ShardsError, OSError) as error:
            with self._lock:
                self._new, self._whole = True, self._whole or whole
                self._sheet = self._sheet or png
            if not self._failing:
                log.warning("%s/%s is not up to date: %s", self._store.uri, FOLDER, error)
            self._failing = True
        else:
            self._failing = False
        return True


def jpeg(png: bytes) -> bytes:
    """Return a PNG as a JPEG of a tenth of the size."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        picture.convert("RGB").save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
