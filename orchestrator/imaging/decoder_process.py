"""Decode image files one after the other, as the program of a process that a damaged file may end.

A request is a line of JSON and the bytes of a file on the standard input, an answer a line of JSON and the samples on
the standard output. It imports nothing of this package, and ends with its input. `decoders` starts it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _avif(data: bytes) -> Any:
    import imagecodecs

    return imagecodecs.avif_decode(data, index=0)


def _heic(data: bytes) -> Any:
    """Return the pixels as viewers show them, since the library crops and turns them."""
    import pi_heif

    for part in ("THUMBNAILS", "DEPTH_IMAGES", "AUX_IMAGES"):
        setattr(pi_heif.options, part, False)
    found = pi_heif.open_heif(data, convert_hdr_to_8bit=False)
    if found.mode.removesuffix(";16") not in ("L", "LA", "I", "RGB", "RGBA"):
        raise ValueError(f"its pixels are of mode {found.mode}")
    return np.array(found)  # a copy, since the library frees its own


_DECODE: dict[str, Callable[[bytes], Any]] = {"AVIF": _avif, "HEIC": _heic}


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    """Let this process end if the next file takes more than this."""
    used = int(time.process_time()) + 1
    _set(resource.RLIMIT_CPU, used + cpu_seconds)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _set(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)


def _set(limit: int, value: int) -> None:
    most = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def main() -> None:
    """Answer requests until the input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        data = sys.stdin.buffer.read(request["bytes"])
        try:
            _limit(request["cpu_seconds"], request["memory_bytes"])
            samples = _DECODE[request["kind"]](data)
            if list(samples.shape[:2]) != request["size"]:
                raise ValueError(f"its pixels are {samples.shape}")
            samples = np.ascontiguousarray(samples).reshape(*request["size"], -1)
            answer = {"channels": samples.shape[2], "dtype": samples.dtype.name}
        except MemoryError:
            answer = {"error": "it needs more memory than pixels of its size"}
        except Exception as error:  # decoders raise errors of any type for damaged files
            answer = {"error": str(error) or type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        if "error" not in answer:
            answers.write(samples.data.cast("B"))
        answers.flush()


if __name__ == "__main__":
    main()
