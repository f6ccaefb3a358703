"""Select deterministic algorithms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

_settings: Any = torch.utils.deterministic
"""Typed as Any: type checkers do not know `fill_uninitialized_memory`."""


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Restrict torch to deterministic algorithms in the block, if `enabled`.

    On CPUs a training step is deterministic without it, and so are our kernels on every device. In the block, an
    operation without a deterministic algorithm raises RuntimeError.
    """
    if not enabled:
        yield
        return
    filling = _settings.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
    torch.use_deterministic_algorithms(True)
    _settings.fill_uninitialized_memory = False  # only for debugging, and slow
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        _settings.fill_uninitialized_memory = filling
