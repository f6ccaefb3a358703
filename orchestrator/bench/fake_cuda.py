"""Fake tensors on the device "cuda" on a machine without a GPU: their operators can be counted, not run.

`load` comes before the first import of PyTorch, so a count needs a process of its own; `pretend` follows it. A PyTorch
that was built for CUDA needs neither library nor compiler; one that was built for CPUs needs both (`fake_cuda.cpp`).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.bench.errors import BenchError

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-std=c++20", "-O0", "-shared", "-fPIC")


def load() -> None:
    """Load the stand-ins for CUDA if this PyTorch has none. Raises BenchError."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise BenchError("PyTorch is not installed.")
    root = Path(found.origin).parent
    if list((root / "lib").glob("libtorch_cuda*")):
        return
    if "torch" in sys.modules:
        raise BenchError(
            "PyTorch is already imported in this process. Run: python -m orchestrator.bench traffic"
        )
    ctypes.CDLL(str(_library(root)))


def pretend() -> None:
    """Make autocast and Triton's launchers believe in a GPU, if there is none, and optimisers take fake tensors."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    for types in (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types):
        types.append(FakeTensor)  # by their type they would be updated one by one
    if torch.cuda.is_available():
        return
    stand_ins: Any = torch.cuda
    stand_ins.amp.common.amp_definitely_not_available = lambda: False
    stand_ins.is_bf16_supported = lambda *_, **__: True
    stand_ins.device_of = lambda _: contextlib.nullcontext()


def _library(root: Path) -> Path:
    """Return the compiled `fake_cuda.cpp`, from the user's cache or built now. Raises BenchError."""
    version = (root / "version.py").read_bytes()
    name = hashlib.sha256(SOURCE.read_bytes() + version + str(root).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirage-kernels"
    target = cache / f"fake-cuda-{name}.so"
    if target.is_file():
        return target
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        raise BenchError(
            "This PyTorch was built for CPUs: counting CUDA kernels needs a C++ compiler. Install g++."
        )
    lib = root / "lib"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        built = Path(folder) / target.name
        done = subprocess.run(
            [
                *(compiler, *FLAGS, str(SOURCE), f"-I{root / 'include'}"),
                *(f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-ltorch_cpu", "-o", str(built)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"{SOURCE.name} did not compile: {done.stderr.strip()[-2000:]}")
        built.replace(target)
    return target
