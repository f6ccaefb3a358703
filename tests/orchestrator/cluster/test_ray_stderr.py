"""One harmless line of Ray's core does not reach the user, and everything else does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.cluster.ray_stderr import HARMLESS

PROGRAM = """
import os, subprocess, sys, time
from orchestrator.cluster.ray_stderr import without_harmless_lines
def write(text):
    os.write(2, text)
with without_harmless_lines():
    {inside}
write(b"after\\n")
"""
LINE = b"E core_worker.cc:2465: Actor with class name: 'MapWorker(MapBatches(_Worker))', " + HARMLESS[0]


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        (f"write(b'one\\n' + {LINE!r} + b'\\ntwo\\n')", b"one\ntwo\nafter\n"),
        (f"write({LINE!r} + b'\\n')", b"after\n"),
        ("write(b'no end')", b"no endafter\n"),
        ("print('by Python', file=sys.stderr)", b"by Python\nafter\n"),
        ("write(b'x' * 300_000 + b'\\n')", b"x" * 300_000 + b"\nafter\n"),
        ("subprocess.run(['sh', '-c', 'echo child >&2'])", b"child\nafter\n"),
        ("kept = subprocess.Popen(['sleep', '30']); write(b'one\\n')", b"one\nafter\n"),
    ],
    ids=[
        "between lines",
        "alone",
        "no end",
        "Python",
        "more than a pipe holds",
        "a process",
        "a process that stays",
    ],
)
def test_only_the_harmless_line_is_left_out_and_a_process_that_stays_delays_nothing(
    inside: str, expected: bytes
):
    program = PROGRAM.format(inside=inside) + ("\nkept.kill()" if "kept" in inside else "")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20, check=True)
    assert found.stderr == expected


def test_an_error_inside_is_seen_and_standard_error_is_as_before():
    inside = "raise SystemExit('stopped')"
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(inside=inside)], capture_output=True, timeout=20
    )
    assert (found.returncode, found.stderr) == (1, b"stopped\n")
