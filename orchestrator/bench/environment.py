"""Device, threads and versions of a benchmark."""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.bench.errors import BenchError

Echo = Callable[[str], object]
"""Prints text for the user."""


@dataclass(frozen=True)
class Environment:
    """Device and threads of a benchmark."""

    device: torch.device
    threads: int

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Return the context of a forward pass in this precision: autocast for bf16."""
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def prepare(device: str, threads: int, precision: str) -> Environment:
    """Choose the device, set the number of threads, and allow TF32 only for `tf32`. Raises BenchError."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch finds no GPU.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "tf32" and device != "cuda":
        raise BenchError("--precision tf32: needs a GPU. On a CPU use fp32 or bf16.")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # torch's default is True
    torch.set_num_threads(threads)
    return Environment(torch.device(device), threads)


def describe(environment: Environment) -> dict[str, Any]:
    """Return hardware, versions and date for the record."""
    name = torch.cuda.get_device_name() if environment.device.type == "cuda" else _cpu()
    return {
        "hardware": name,
        "threads": environment.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def command(options: argparse.Namespace) -> str:
    """Return the command line, with PATH in place of this machine's folders."""
    words = [f"mirage bench {options.kind}"]
    for name, value in vars(options).items():
        flag = "--" + name.replace("_", "-")
        if name in ("kind", "json") or value is None or value is False or value == []:
            continue
        if value is True:
            words.append(flag)
        elif name == "peer" and isinstance(value, list):
            words += [f"{flag} {peer.split('=')[0]}=PATH" for peer in value]
        elif isinstance(value, list):
            words.append(f"{flag} {' '.join(map(str, value))}")
        else:
            words.append(f"{flag} {'PATH' if isinstance(value, Path) else value}")
    return " ".join(words)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()
