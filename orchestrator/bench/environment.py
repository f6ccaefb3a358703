"""Where a benchmark runs: device, threads, versions."""

from __future__ import annotations

import argparse
import datetime
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.bench.errors import BenchError


@dataclass(frozen=True)
class Setting:
    """Device and threads of a benchmark."""

    device: torch.device
    threads: int

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Return the context in which a forward pass of this precision runs: bf16 is autocast's."""
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def prepare(device: str, threads: int, precision: str) -> Setting:
    """Choose the device, set the number of threads, and whether fp32 products and convolutions may use TF32."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch sees no GPU here.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "tf32" and device != "cuda":
        raise BenchError("--precision tf32: only a GPU has it. On a CPU: fp32 or bf16.")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # torch's own default is True
    torch.set_num_threads(threads)
    return Setting(torch.device(device), threads)


def describe(setting: Setting) -> dict[str, Any]:
    """Hardware, versions and date, for the record."""
    name = torch.cuda.get_device_name() if setting.device.type == "cuda" else _cpu()
    return {
        "hardware": name,
        "threads": setting.threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def command(options: argparse.Namespace) -> str:
    """The command line, with PATH in place of this machine's folders."""
    words = [f"mirage bench {options.kind}"]
    for name, value in vars(options).items():
        flag = "--" + name.replace("_", "-")
        if name in ("kind", "json") or value is None or value is False or value == []:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, list) and name != "peer":
            words.append(f"{flag} {' '.join(map(str, value))}")
        elif name == "peer":
            words += [f"{flag} {peer.split('=')[0]}=PATH" for peer in value]
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
