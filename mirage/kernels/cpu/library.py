"""The C code in `c/` as a shared library: built for this processor at the first use, kept in the user's cache.

It works on fp32 CPU tensors with as many threads as torch has. Without a compiler, or with `MIRAGE_NATIVE=0` in the
environment, there is no library.
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
    "fusion_linear": (7, 4),
    "fusion_linear_backward": (12, 4),
}
"""The numbers of pointer arguments (the last one is scratch memory) and of integer arguments after them."""

ALIGNMENT = 64
"""Alignment of scratch memory in bytes."""

MIN_ROWS = 8
"""Fewest rows of an image for one thread: convolutions compute a few rows above and below as well."""

R = TypeVar("R")


class RowRange(NamedTuple):
    """Consecutive rows of one image of a batch."""

    image: int
    start: int
    stop: int


def supports(*tensors: Tensor) -> bool:
    """Return whether the library can compute with these tensors: non-empty, fp32, on the CPU."""
    fit = all(x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0 for x in tensors)
    return fit and library() is not None


def lanes() -> int:
    """Return the channels of one vector register, which the C code computes at once."""
    return 16 if library() is None else _lanes


def call(name: str, *arguments: Tensor | int, scratch: int) -> None:
    """Call a function of the library with pointers to the tensors, `scratch` floats of memory, and the integers."""
    loaded = library()
    assert loaded is not None
    pointers = [x.data_ptr() for x in arguments if isinstance(x, Tensor)]
    numbers = [x for x in arguments if not isinstance(x, Tensor)]
    getattr(loaded, f"mirage_{name}")(*pointers, _scratch(scratch), *numbers)


def split_rows(images: int, height: int) -> list[list[RowRange]]:
    """Split a batch among threads, in order; the split depends on the sizes and the number of threads alone."""
    threads = torch.get_num_threads()
    per_image = -(-threads // images)
    size = max(-(-height // per_image), MIN_ROWS)
    parts = [
        RowRange(image, start, min(start + size, height))
        for image in range(images)
        for start in range(0, height, size)
    ]
    per_thread = -(-len(parts) // threads)
    return [parts[i : i + per_thread] for i in range(0, len(parts), per_thread)]


def run_in_threads(task: Callable[[list[RowRange]], R], work: Sequence[list[RowRange]]) -> list[R]:
    """Run the task on each item of `work` in threads; return the results in the order of `work`."""
    if len(work) == 1:
        return [task(work[0])]
    return list(_pool(torch.get_num_threads()).map(task, work))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mirage-kernels")


_local = threading.local()


def _scratch(floats: int) -> int:
    """Return the aligned address of this thread's scratch memory, which is reused: fresh pages are expensive."""
    size = 4 * floats + ALIGNMENT
    if getattr(_local, "memory", None) is None or _local.memory.numel() < size:
        _local.memory = torch.empty(size, dtype=torch.uint8)
    address: int = _local.memory.data_ptr()
    return -(-address // ALIGNMENT) * ALIGNMENT


_loaded: ctypes.CDLL | None = None
_lanes = 16
_searched = False


def library() -> ctypes.CDLL | None:
    """Return the library, built at the first call; None if it cannot be built."""
    global _loaded, _lanes, _searched  # not functools.cache: torch.compile would trace into the build
    if not _searched:
        _loaded, _searched = _load(), True
        if _loaded is not None:
            _lanes = int(_loaded.mirage_lanes())
    return _loaded


def _load() -> ctypes.CDLL | None:
    if os.environ.get("MIRAGE_NATIVE") == "0":
        return None
    target = _folder() / f"native-{_fingerprint()}.so"
    if not target.is_absolute():  # no home folder: HOME is not set, and the user has no account
        return None
    if not target.is_file():
        names = (os.environ.get("CC", "cc"), "gcc", "clang")
        compiler = next(filter(None, map(shutil.which, names)), None)
        if compiler is None:
            return None
        problem = _build(compiler, target)
        if problem:
            warnings.warn(
                f"The C code of mirage.kernels did not compile; plain PyTorch is used instead: {problem}",
                stacklevel=3,
            )
            return None
    try:
        loaded = ctypes.CDLL(str(target))
    except OSError as error:  # damaged, or in a folder whose files must not run
        warnings.warn(
            f"The C code of mirage.kernels cannot be loaded; plain PyTorch is used instead: {error}. "
            "Where the file is damaged, remove it: the next start builds it again.",
            stacklevel=3,
        )
        return None
    loaded.mirage_lanes.argtypes, loaded.mirage_lanes.restype = [], ctypes.c_long
    for name, (pointers, numbers) in FUNCTIONS.items():
        function = getattr(loaded, f"mirage_{name}")
        function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_long] * numbers
        function.restype = None
    return loaded


def _build(compiler: str, target: Path) -> str:
    """Compile the sources to `target` atomically; return the error, empty on success."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            files = [str(path) for path in SOURCES if path.suffix == ".c"]
            done = subprocess.run(
                [compiler, *FLAGS, *files, "-o", str(built), "-lm"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                return done.stderr.strip() or f"{compiler} exited with status {done.returncode}"
            built.replace(target)
    except OSError as error:
        return str(error)
    return ""


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mirage")


def _fingerprint() -> str:
    """Return a hash of sources, flags and processor: a build for one processor may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = (*(path.read_text() for path in SOURCES), *FLAGS, platform.machine(), processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
