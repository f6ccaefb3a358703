"""What a driver prints, where it was asked to be read by programs: one JSON object per line and event."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

Say = Callable[[str], None]
"""Shows a line to whoever watches a job."""


class JsonLines:
    """Turns lines and numbers into events, each with its time, the run and what kind it is."""

    def __init__(self, say: Say, job: str, clock: Callable[[], float] = time.time) -> None:
        self._say, self._job, self._clock = say, job, clock

    def line(self, text: str) -> None:
        """Print an event of kind `line`; a text of several lines is one event."""
        if text.strip():
            self._print("line", {"text": text.strip()})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Print an event of kind `metrics`; JSON has no word for what is not finite, which becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._print("metrics", {"step": step, **finite})

    def _print(self, kind: str, content: Mapping[str, object]) -> None:
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        self._say(json.dumps({"time": at, "job": self._job, "event": kind, **content}, ensure_ascii=False))
