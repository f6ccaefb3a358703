"""Progress callback of long operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

ProgressCallback = Callable[[int, int, str], None]
"""Called with the number of finished items, the total, and the name of the last finished item."""


def counted(items: Sequence[T], on_progress: ProgressCallback) -> Iterator[T]:
    """Yield the items, and report each as finished when the next one is asked for."""
    for number, item in enumerate(items):
        on_progress(number, len(items), "")
        yield item
    on_progress(len(items), len(items), "")


def ignore(done: int, total: int, name: str) -> None:
    """Show no progress."""
