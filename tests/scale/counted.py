"""Costs that do not depend on how busy a machine is: calls and memory."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable


def calls(action: Callable[[], object]) -> int:
    """Return the number of calls, of Python and of C functions, that an action makes."""
    found = 0

    def count(frame: object, event: str, what: object) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return found


def peak_bytes(action: Callable[[], object]) -> int:
    """Return the most memory that an action holds at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
