"""Decode files in processes that a damaged file may end, so that it ends nothing else.

The libraries for AVIF and HEIC are large and young: a HEIC with a few changed bytes can end its process by a
segmentation fault. Each process decodes one file at a time, within limits of memory and CPU time, without this
process's environment. One that answered is used again.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_apart"]

_PROGRAM = Path(__file__).with_name("decoder_process.py")
_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG")
_TYPES = {"uint8": np.uint8, "uint16": np.uint16}
_MAX_IDLE = 2
_MAX_SECONDS = 300
"""Time after which a process is ended that uses no CPU time, since its threads wait for each other."""
_MAX_SECONDS_TO_END = 5
_CPU_SECONDS, _PIXELS_PER_CPU_SECOND = 20, 500_000
_MEMORY_BYTES, _BYTES_PER_PIXEL = 2**29, 64


class _EndedError(ValueError):
    """The process of a decoder ended without an answer."""

    def __init__(self, status: int) -> None:
        self.status = status
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        super().__init__(
            "it takes too long" if status == -signal.SIGXCPU else f"its decoder ended with {name}"
        )


class _Decoder:
    """A process that decodes one file after the other."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            process_group=0,  # Ctrl-C is for this process
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def ask(self, kind: str, data: bytes, size: tuple[int, int]) -> NDArray[Any] | str:
        """Return the samples of a file, or what is wrong with it. Raises _EndedError."""
        pixels = size[0] * size[1]
        request = {
            "kind": kind,
            "size": size,
            "bytes": len(data),
            "cpu_seconds": _CPU_SECONDS + pixels // _PIXELS_PER_CPU_SECOND,
            "memory_bytes": _MEMORY_BYTES + 2 * len(data) + pixels * _BYTES_PER_PIXEL,
        }
        timer = threading.Timer(_MAX_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.write(data)
            self._requests.flush()
            answer = json.loads(self._answers.readline(2**16))
            if "error" in answer:
                return str(answer["error"])
            samples = np.empty((*size, answer["channels"]), _TYPES[answer["dtype"]])
            rest = samples.data.cast("B")
            while rest:
                count = self._answers.readinto(rest)  # type: ignore[attr-defined]
                if not count:
                    raise EOFError
                rest = rest[count:]
        except (OSError, EOFError, LookupError, TypeError, ValueError) as error:
            raise _EndedError(self.end()) from error
        finally:
            timer.cancel()
        return samples

    def end(self) -> int:
        """Close the process, or end it if it does not end by itself; return its status."""
        with suppress(OSError):  # what it did not read
            self._requests.close()
        self._answers.close()
        try:
            return self._process.wait(_MAX_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


_idle: list[_Decoder] = []
os.register_at_fork(after_in_child=_idle.clear)  # a process has one parent


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


def decode_apart(kind: str, data: bytes, size: tuple[int, int]) -> NDArray[Any]:
    """Return the samples of a file, (h, w, c), of 8 or 16 bits. Raises ValueError if it is damaged.

    kind: AVIF or HEIC. size: (height, width), as the file says.
    """
    try:
        decoder, is_new = _idle.pop(), False
    except IndexError:
        decoder, is_new = _Decoder(), True
    try:
        answer = decoder.ask(kind, data, size)
    except _EndedError as error:
        if is_new or error.status in (-signal.SIGXCPU, -signal.SIGKILL):
            raise
        decoder = _Decoder()  # an earlier file may have harmed the other one
        answer = decoder.ask(kind, data, size)
    if len(_idle) < _MAX_IDLE:
        _idle.append(decoder)
    else:
        decoder.end()
    if isinstance(answer, str):
        raise ValueError(answer)
    return answer
