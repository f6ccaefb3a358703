"""Seed random generators, and select deterministic algorithms."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
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


def seed_generators(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_at(seed: int, position: int) -> int:
    """Return the seed of what a user-defined network draws for a micro-batch whose first sample is at a position.

    A resumed run draws what an undisturbed one draws. Draws differ between workers, as their samples do.
    """
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
