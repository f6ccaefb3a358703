"""The C code in `c/` as a shared library: built for this processor at the first use, kept in the user's cache.

Its functions give the bits of their references in NumPy. Without a compiler, or with `MIRAGE_NATIVE=0` in the
environment, there is no library, and the references run. (`mirage.kernels.cpu` builds its own code in the same way:
neither package imports the other.)
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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCES = sorted(Path(__file__).with_name("c").glob("*.c"))
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fno-fast-math", "-shared", "-fPIC")
_ARGUMENTS = {"convolve": (3, 5), "resize_rows": (4, 3), "resize_columns": (4, 4)}
"""Numbers of pointer arguments, and of integer arguments after them."""


def call(name: str, *arguments: NDArray[np.generic] | int) -> bool:
    """Call a function of the library with arrays, contiguous, and integers; return whether it did its work."""
    loaded = library()
    if loaded is None:
        return False
    given = [each if isinstance(each, int) else each.ctypes.data for each in arguments]
    return bool(getattr(loaded, f"degradations_{name}")(*given))


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, built at the first call on a machine; None if it cannot be built."""
    if os.environ.get("MIRAGE_NATIVE") == "0":
        return None
    target = _folder() / f"degradations-{_fingerprint()}.so"
    if not target.is_absolute():  # no home folder
        return None
    if not target.is_file():
        names = (os.environ.get("CC", "cc"), "gcc", "clang")
        compiler = next(filter(None, map(shutil.which, names)), None)
        if compiler is None:
            return None
        problem = _build(compiler, target)
        if problem:
            warnings.warn(
                f"The C code of shards.degradations did not compile; NumPy is used instead: {problem}",
                stacklevel=2,
            )
            return None
    try:
        loaded = ctypes.CDLL(str(target))
    except OSError as error:  # damaged, or in a folder whose files must not run
        warnings.warn(
            f"The C code of shards.degradations cannot be loaded; NumPy is used instead: {error}. "
            "Where the file is damaged, remove it: the next start builds it again.",
            stacklevel=2,
        )
        return None
    for name, (pointers, numbers) in _ARGUMENTS.items():
        function = getattr(loaded, f"degradations_{name}")
        function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_long] * numbers
        function.restype = ctypes.c_long
    return loaded


def _build(compiler: str, target: Path) -> str:
    """Compile the sources to `target` atomically; return the error, empty on success."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(built)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
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
