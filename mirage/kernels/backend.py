"""The choice of a backend for a tensor.

CUDA tensors take the Triton kernels, CPU tensors the CPU backend, everything else the reference. Set
`MIRAGE_KERNELS=reference` to take the reference everywhere.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Literal

from torch import Tensor

from mirage.kernels import cpu, reference, triton

Choice = Literal["auto", "reference", "triton"]

HAS_TRITON = importlib.util.find_spec("triton") is not None

_choice: str = os.environ.get("MIRAGE_KERNELS", "auto")
if _choice not in ("auto", "reference"):
    raise ValueError(f"MIRAGE_KERNELS={_choice}: must be auto or reference.")


def select(x: Tensor) -> ModuleType:
    """Return the backend for x: the package `cpu` or `triton`, or the module `reference`."""
    if _choice == "auto" and x.device.type == "cpu":
        return cpu
    if _choice == "triton" or (_choice == "auto" and x.device.type == "cuda" and HAS_TRITON):
        return triton if x.dtype in triton.DTYPES else reference
    return reference


@contextmanager
def use_backend(choice: Choice) -> Iterator[None]:
    """Force a backend in the whole process within the block.

    `triton` works on any device for fake tensors, and on a CPU under Triton's interpreter (`TRITON_INTERPRET=1`).
    """
    global _choice
    before, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = before
