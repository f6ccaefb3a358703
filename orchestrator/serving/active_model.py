"""Which model answers: the current one, the one before it, and what was refused."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from orchestrator.serving.served_model import Served

log = logging.getLogger(__name__)

SECOND_TRIAL_SECONDS = 60.0
"""After this long a version that could not be had is tried again: its file may be repaired, its store be back."""


@dataclass(frozen=True)
class Refused:
    """A version that was asked for and does not answer."""

    version: str
    reason: str
    at: float
    """Seconds since the epoch."""
    at_work: bool = False
    """It passed its trial and failed on a real image: it would again, so there is no second trial."""


class Shelf:
    """Holds whole models; a request takes one at its start and keeps it to its end. Safe between threads."""

    def __init__(self, current: Served) -> None:
        self._lock = threading.Lock()
        self.current = current
        self.previous: Served | None = None
        self.refused: Refused | None = None

    def put(self, model: Served) -> None:
        """Let `model` answer every request from now on."""
        with self._lock:
            if model.digest != self.current.digest:
                self.previous = self.current
            self.current = model
            self.refused = None
        log.warning("%s answers from now on", model.label)

    def refuse(self, version: str, reason: str) -> None:
        """Note that `version` does not answer, and why; the current model stays."""
        with self._lock:
            self.refused = Refused(version, reason, time.time())
        log.error("version %s is refused, %s stays: %s", version, self.current.label, reason)

    def distrust(self, model: Served, reason: str) -> bool:
        """Go back to the model before `model`, if it is the current one; return whether another one answers now."""
        with self._lock:
            if self.current is not model:
                return True
            if self.previous is None:
                return False
            self.current, self.previous = self.previous, None
            self.refused = Refused(model.version, reason, time.time(), at_work=True)
        log.error("%s is taken back, %s answers again: %s", model.label, self.current.label, reason)
        return True

    def forget_refusal(self) -> None:
        """The registry means the current model again."""
        with self._lock:
            self.refused = None

    def may_try(self, version: str) -> bool:
        """Whether `version` is another one than answers now, and was neither refused lately nor taken back."""
        if version == self.current.version:
            return False
        refused = self.refused
        if refused is None or refused.version != version:
            return True
        return not refused.at_work and time.time() - refused.at > SECOND_TRIAL_SECONDS
