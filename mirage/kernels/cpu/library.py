"""The C of `c/`, compiled once for this processor and kept in the user's cache; without a compiler it does not exist.

`MIRAGE_NATIVE=0` in the environment does without it. It works in fp32 on a CPU, with as many threads as torch has.
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
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

SOURCES = sorted(Path(__file__).with_name("c").glob("*.[ch]"))
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC")
FUNCTIONS = {
    "feed_forward": (7, 6),
    "feed_forward_backward": (13, 7),
    "attention_input": (6, 9),
    "attention_input_backward": (10, 9),
    "gated_unit": (7, 9),
    "gated_unit_backward": (13, 10),
    "channel_mlp": (5, 5),
    "channel_mlp_backward": (9, 5),
    "fused_product": (7, 4),
    "fused_product_backward": (12, 4),
}
"""Each one's number of addresses, the last for scratch memory, and of whole numbers after them."""

ALIGNMENT = 64
"""Of scratch memory, in bytes."""

LEAST_ROWS = 8
"""Of an image that a thread takes: windows make it compute a few rows above and below as well."""

R = TypeVar("R")


class Rows(NamedTuple):
    """Part of one image of a batch."""

    image: int
    start: int
    stop: int


def serves(*tensors: Tensor) -> bool:
    """Whether the compiled forms are there for an operator of these tensors, none of which is empty."""
    fit = all(x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0 for x in tensors)
    return fit and library() is not None


def lanes() -> int:
    """Channels that the compiled forms take at once: as many as a register of this processor holds."""
    found = library()
    return 16 if found is None else int(found.mirage_lanes())


def call(name: str, *arguments: Tensor | int, scratch: int) -> None:
    """Run a function of `c/` on tensors, of which it takes the address, then scratch memory, then whole numbers."""
    found = library()
    assert found is not None
    addresses = [x.data_ptr() for x in arguments if isinstance(x, Tensor)]
    numbers = [x for x in arguments if not isinstance(x, Tensor)]
    getattr(found, f"mirage_{name}")(*addresses, _scratch(scratch), *numbers)


def shares(images: int, height: int) -> list[list[Rows]]:
    """What each thread takes of a batch, in order. It depends on sizes and the number of threads alone."""
    threads = torch.get_num_threads()
    pieces = -(-threads // images)
    size = max(-(-height // pieces), LEAST_ROWS)
    parts = [
        Rows(image, start, min(start + size, height))
        for image in range(images)
        for start in range(0, height, size)
    ]
    each = -(-len(parts) // threads)
    return [parts[i : i + each] for i in range(0, len(parts), each)]


def in_threads(task: Callable[[list[Rows]], R], work: Sequence[list[Rows]]) -> list[R]:
    """The task's results in the order of `work`, whichever thread was first."""
    if len(work) == 1:
        return [task(work[0])]
    return list(_pool(torch.get_num_threads()).map(task, work))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mirage-native")


_local = threading.local()


def _scratch(floats: int) -> int:
    """Aligned address of this thread's scratch memory, which it keeps: fresh pages would cost more than the work."""
    size = 4 * floats + ALIGNMENT
    if getattr(_local, "memory", None) is None or _local.memory.numel() < size:
        _local.memory = torch.empty(size, dtype=torch.uint8)
    address: int = _local.memory.data_ptr()
    return -(-address // ALIGNMENT) * ALIGNMENT


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled forms, building them at the first call; None where that is not possible."""
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
                f"The C of mirage.kernels was not compiled, plain forms run instead: {problem}", stacklevel=2
            )
            return None
    found = ctypes.CDLL(str(target))
    found.mirage_lanes.argtypes, found.mirage_lanes.restype = [], ctypes.c_long
    for name, (addresses, numbers) in FUNCTIONS.items():
        function = getattr(found, f"mirage_{name}")
        function.argtypes = [ctypes.c_void_p] * addresses + [ctypes.c_long] * numbers
        function.restype = None
    return found


def _build(compiler: str, target: Path) -> str:
    """Compile to `target`, all or nothing; return what went wrong."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            files = [str(path) for path in SOURCES if path.suffix == ".c"]
            done = subprocess.run(
                [compiler, *FLAGS, *files, "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                check=False,
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
    """Of sources, flags and processor: a build for another processor may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = (*(path.read_text() for path in SOURCES), *FLAGS, platform.machine(), processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
