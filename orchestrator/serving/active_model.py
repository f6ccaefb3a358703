"""The model that restores, the one before it, and the last version that was rejected."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from orchestrator.serving.served_model import ServedModel

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 60.0
"""A version that could not be loaded is tried again after this time: its file may be repaired."""


@dataclass(frozen=True)
class RejectedVersion:
    """A version that the alias points to and that is not used."""

    version: str
    reason: str
    at: float
    """By the monotonic clock."""
    failed_in_use: bool = False
    """It passed its smoke test and failed on a real image, so it is not tried again."""


class ActiveModel:
    """The model for new requests; a request keeps the model that it started with. Thread-safe."""

    def __init__(self, current: ServedModel) -> None:
        self._lock = threading.Lock()
        self.current = current
        self.previous: ServedModel | None = None
        self.rejected: RejectedVersion | None = None

    def activate(self, model: ServedModel) -> None:
        """Use `model` for every request from now on."""
        with self._lock:
            if model.digest != self.current.digest:
                self.previous = self.current
            self.current = model
            self.rejected = None
        log.warning("now serving %s", model.label)

    def reject(self, version: str, reason: str) -> None:
        """Record why `version` is not used; the current model stays active."""
        with self._lock:
            self.rejected = RejectedVersion(version, reason, time.monotonic())
        log.error("version %s rejected, still serving %s: %s", version, self.current.label, reason)

    def roll_back(self, model: ServedModel, reason: str) -> bool:
        """Activate the model before `model` if that is the current one; return whether another one is active now."""
        with self._lock:
            if self.current is not model:
                return True
            if self.previous is None:
                return False
            self.current, self.previous = self.previous, None
            self.rejected = RejectedVersion(model.version, reason, time.monotonic(), failed_in_use=True)
        log.error("%s rolled back, now serving %s: %s", model.label, self.current.label, reason)
        return True

    def clear_rejection(self) -> None:
        """Forget the rejected version: the alias points to the current model again."""
        with self._lock:
            self.rejected = None

    def may_try(self, version: str) -> bool:
        """Return whether to load `version`: it is not the current one, nor rejected lately or in use."""
        if version == self.current.version:
            return False
        rejected = self.rejected
        if rejected is None or rejected.version != version:
            return True
        return not rejected.failed_in_use and time.monotonic() - rejected.at > RETRY_AFTER_SECONDS
