"""Handle requests to stop in the driver: SIGTERM, which `ray job stop` and SLURM send, SIGHUP and Ctrl-C.

SIGHUP comes when the terminal is closed; a process that ignores it (`nohup`) continues. Workers handle SIGTERM in
`orchestrator.training.worker_signals`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_requested = False
_number: int = signal.SIGTERM


def stop_requested() -> bool:
    """Return whether this process has been asked to stop since the outermost block of `on_stop` began."""
    return _requested


def stop_status() -> int:
    """Return the exit status of a process that was asked to stop: 128 + the newest signal, as shells report it.

    143, that of SIGTERM, where the process stopped by itself, as at the end of `workers.max_runtime_hours`.
    """
    return 128 + _number


class Stopped(BaseException):
    """The process was asked to stop. No `Exception`, so that no code mistakes it for a failure of its own."""


@contextmanager
def on_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` on SIGTERM, SIGHUP or Ctrl-C during the block; a second Ctrl-C interrupts as usual.

    Only the main thread may use it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        global _requested, _number
        _requested, _number = True, number
        callback()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    global _requested
    earlier = _requested
    before = {number: signal.signal(number, handle) for number in _stop_signals()}
    try:
        yield
    finally:
        _requested = earlier
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def raise_on_stop() -> Iterator[None]:
    """Raise Stopped on SIGTERM, SIGHUP or Ctrl-C during the block, outside of the blocks of `on_stop` within it."""

    def stop() -> None:
        raise Stopped

    with on_stop(stop):
        yield


def _stop_signals() -> list[signal.Signals]:
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, signal.SIGINT, *hangup]
