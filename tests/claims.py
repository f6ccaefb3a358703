"""What tests of every package wait for, run and compare, in one vocabulary.

wait       `wait_until`
run        `run_command`, `mirage`; both return `Finished`
errors     `assert_one_clear_error`
files      `modification_times`, `assert_unchanged`, `flip_byte`
weights    `final_weights`, `assert_same_weights`, `relative_difference`
images     `noise_image`, `encoded`
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

T = TypeVar("T")


def wait_until(condition: Callable[[], T | None], what: str, seconds: float = 60, every: float = 0.05) -> T:
    """Return the first true value of `condition`; fail and name `what` where none comes in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {seconds:g} s: {what}")
        time.sleep(every)
    return found


# --- commands --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A finished command: its exit status and everything that it printed."""

    status: int
    text: str


def run_command(
    *words: str | Path, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, timeout: float = 400
) -> Finished:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Finished(done.returncode, done.stdout)


def mirage(*words: str | Path) -> Finished:
    """Run `mirage WORDS` in this process; variables that it sets are unset afterwards."""
    from orchestrator.cli import main

    printed = io.StringIO()
    arguments = mock.patch.object(sys, "argv", ["mirage", *map(str, words)])
    with (
        arguments,
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    assert isinstance(status, int)
    return Finished(status, printed.getvalue())


def assert_one_clear_error(error: BaseException | Finished, *says: str) -> None:
    """Assert that an error, or what a refused command printed, is one line that contains each of `says`."""
    if isinstance(error, Finished):
        assert error.status not in (0, None), error.text
    message = (error.text if isinstance(error, Finished) else str(error)).strip()
    assert message
    assert "\n" not in message, message
    for each in says:
        assert each in message, f"{each!r} is not in {message!r}"


# --- files -----------------------------------------------------------------------------------------------


def modification_times(folder: Path) -> dict[str, int]:
    """Return when each file below `folder` was written, in nanoseconds, by its path in `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


@contextlib.contextmanager
def assert_unchanged(folder: Path) -> Iterator[None]:
    """Assert that the block neither writes, nor adds, nor removes a file below `folder`."""
    before = modification_times(folder)
    assert before, f"{folder} holds no files"
    yield
    assert modification_times(folder) == before


def flip_byte(file: Path, at: int | None = None) -> None:
    """Change one bit of one byte of a file, by default in its middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


# --- weights ---------------------------------------------------------------------------------------------


def final_weights(run_folder: Path) -> dict[str, Tensor]:
    """Return the weights that a finished run names in its result."""
    result = json.loads((run_folder / "result.json").read_bytes())
    return safetensors.torch.load((run_folder / result["weights"]).read_bytes())


def assert_same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Assert that two networks have the same tensors, bit for bit."""
    assert found.keys() == expected.keys()
    differing = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not differing, f"{len(differing)} of {len(expected)} tensors differ, first {differing[0]}"


def relative_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return |found - expected| / |expected| over all tensors together, as vectors."""
    assert found.keys() == expected.keys()
    a, b = (torch.cat([each[n].double().flatten() for n in sorted(each)]) for each in (found, expected))
    return float((a - b).norm() / b.norm())


# --- images ----------------------------------------------------------------------------------------------


def noise_image(width: int = 40, height: int = 24, seed: int = 0) -> np.ndarray:
    """Return height x width x 3 random 8-bit values."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Return the image file of 8-bit pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
