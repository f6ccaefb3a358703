"""Handle SIGTERM in a worker: `ray_driver_relay` then makes the training loop write a checkpoint and end."""

from __future__ import annotations

import signal
from types import FrameType


class SigtermFlag:
    """Records SIGTERM: the worker's node is leaving, so the worker asks for a checkpoint before it exits."""

    received = False

    @classmethod
    def install(cls) -> None:
        """Handle SIGTERM from now on; only the main thread may call this."""
        signal.signal(signal.SIGTERM, cls._set)

    @classmethod
    def _set(cls, number: int, frame: FrameType | None) -> None:
        cls.received = True
