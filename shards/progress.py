"""Progress callback of long operations."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int, str], None]
"""Called with the number of finished items, the total, and the name of the last finished item."""
