"""Keep a harmless line of Ray's C++ core from the user.

The core writes to the file descriptor, not to Python's `sys.stderr`, and has no switch for one message.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HARMLESS = (b"the actor restart will fail. See https://github.com/ray-project/ray/issues/53727",)
"""Parts of lines. The actors of a Ray Data pool are ended by a handle, which the core takes for a loss of the actor."""
_POLL_SECONDS = 0.05


@contextmanager
def without_harmless_lines() -> Iterator[None]:
    """Pass standard error on without HARMLESS lines while the block runs. A terminal is left as it is."""
    if sys.stderr is None or os.isatty(2):
        yield
        return
    kept = os.dup(2)
    source, sink = os.pipe()
    ended = threading.Event()
    thread = threading.Thread(target=_pass_on, args=(source, kept, ended), name="stderr", daemon=True)
    os.dup2(sink, 2)
    os.close(sink)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        ended.set()  # a process that was started meanwhile may hold the pipe open
        thread.join()
        os.close(source)
        os.close(kept)


def _pass_on(source: int, target: int, ended: threading.Event) -> None:
    """Write what arrives line by line, and a line that stays incomplete for a moment as it is."""
    line, last = b"", False
    while not last:
        last = ended.is_set()
        while select.select([source], [], [], 0 if last else _POLL_SECONDS)[0]:
            received = os.read(source, 1 << 16)
            *complete, line = (line + received).split(b"\n")
            _write(target, b"".join(each + b"\n" for each in complete if not _is_harmless(each)))
            if not received:
                break
        _write(target, line)
        line = b""


def _is_harmless(line: bytes) -> bool:
    return any(part in line for part in HARMLESS)


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]
