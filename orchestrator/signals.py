"""Handle requests to stop in the driver: SIGTERM, which `ray job stop` and SLURM send, and Ctrl-C.

Workers handle SIGTERM in `orchestrator.training.ray_driver_relay.SigtermFlag`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on SIGTERM or Ctrl-C during the block; a second Ctrl-C interrupts as usual.

    Only the main thread may use it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        callback()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
