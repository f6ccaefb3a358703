"""`native.c`, compiled once for this processor and kept in the user's cache; without a compiler it does not exist.

`MIRAGE_NATIVE=0` in the environment does without it. It works in fp32 on a CPU, in place, with as many threads as
torch has.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("native.c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC")
LANES = 16
"""Channels that one call takes at a time."""

ALIGNMENT = 64
"""Of scratch memory, in bytes."""


def serves(x: Tensor) -> bool:
    """Whether the compiled form is there for maps like x."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


def gated_forward(hidden: Tensor, taps: Tensor) -> Tensor:
    """`reference.gated_depthwise` of a contiguous map (b, h, w, 2n), written over half of it: a view (b, h, w, n)."""
    _, height, width, channels = hidden.shape
    n = channels // 2
    taps = taps.contiguous()

    def task(image: int, first: int, last: int) -> None:
        scratch, _memory = _scratch(width)
        found = library()
        assert found is not None
        found.mirage_gated_forward(
            hidden[image].data_ptr(), taps.data_ptr(), scratch, height, width, n, first, last
        )

    _run(task, hidden.shape[0], n)
    return hidden[..., :n]


def gated_backward(hidden: Tensor, grad: Tensor, taps: Tensor) -> Tensor:
    """Turn hidden (b, h, w, 2n) into its gradient and grad (b, h, w, n) into the product; the gradient of taps."""
    batch, height, width, channels = hidden.shape
    n = channels // 2
    taps = taps.contiguous()
    to_taps = taps.new_zeros(batch, *taps.shape)

    def task(image: int, first: int, last: int) -> None:
        scratch, _memory = _scratch(width)
        found = library()
        assert found is not None
        found.mirage_gated_backward(
            *(x.data_ptr() for x in (hidden[image], grad[image], taps, to_taps[image])),
            *(scratch, height, width, n, first, last),
        )

    _run(task, batch, n)
    return to_taps.sum(0)


def _run(task: Callable[[int, int, int], None], images: int, n: int) -> None:
    threads = torch.get_num_threads()
    step = n if threads == 1 else LANES
    tasks = [(image, first, min(first + step, n)) for image in range(images) for first in range(0, n, step)]
    if threads == 1:
        for each in tasks:
            task(*each)
        return
    for _ in _pool(threads).map(lambda each: task(*each), tasks):
        pass


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mirage-native")


def _scratch(width: int) -> tuple[int, Tensor]:
    """Aligned address of scratch memory, and what keeps it alive."""
    found = library()
    assert found is not None
    memory = torch.empty(4 * found.mirage_scratch(width) + ALIGNMENT, dtype=torch.uint8)
    return -(-memory.data_ptr() // ALIGNMENT) * ALIGNMENT, memory


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled form, building it at the first call; None where that is not possible."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if os.environ.get("MIRAGE_NATIVE") == "0":
        return None
    target = _folder() / f"native-{_fingerprint()}.so"
    if not target.is_file():
        if compiler is None:
            return None
        problem = _build(compiler, target)
        if problem:
            warnings.warn(
                f"{SOURCE.name} was not compiled, the plain form runs instead: {problem}", stacklevel=2
            )
            return None
    found = ctypes.CDLL(str(target))
    pointer, number = ctypes.c_void_p, ctypes.c_long
    found.mirage_scratch.argtypes, found.mirage_scratch.restype = [number], number
    found.mirage_gated_forward.argtypes = [pointer] * 3 + [number] * 5
    found.mirage_gated_backward.argtypes = [pointer] * 5 + [number] * 5
    found.mirage_gated_forward.restype = found.mirage_gated_backward.restype = None
    return found


def _build(compiler: str, target: Path) -> str:
    """Compile to `target`, all or nothing; return what went wrong."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            done = subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                return done.stderr.strip() or f"{compiler} ended with {done.returncode}"
            made.replace(target)
    except OSError as error:
        return str(error)
    return ""


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "mirage"


def _fingerprint() -> str:
    """Of source, flags and processor: a build for another processor may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = (SOURCE.read_text(), *FLAGS, platform.machine(), processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
