"""Algorithms that give equal bits for equal inputs, on GPUs too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

_settings: Any = torch.utils.deterministic
"""Type checkers do not know its attribute."""


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Let torch take only algorithms that repeat to the bit for the time of the block, if `enabled`.

    On a CPU all that a training step takes do so anyway, and so do our kernels everywhere. An operation that has no
    such algorithm raises RuntimeError.
    """
    if not enabled:
        yield
        return
    filling = _settings.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS does not repeat
    torch.use_deterministic_algorithms(True)
    _settings.fill_uninitialized_memory = False  # finds reads of it, for time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        _settings.fill_uninitialized_memory = filling
