"""How work that takes long tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[int, int, str], None]
"""Called with how much is done, how much there is in all, and the name of what was done last."""
