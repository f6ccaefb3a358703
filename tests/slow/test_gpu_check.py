"""The one command for a GPU machine, with tiny numbers on a CPU: every line runs but those that need the GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_gpu_check_runs_its_tests_and_benchmarks_and_writes_the_figures(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/gpu-check", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "parity: left out, since it needs --release PATH" in run.stdout
    assert "needs a CUDA GPU" in (tmp_path / "gpu-check.log").read_text()
    tests, fp32, bf16 = json.loads((tmp_path / "gpu-check.json").read_text())
    assert (tests["stage"], fp32["stage"], bf16["stage"]) == ("tests", "speed", "speed")
    assert fp32["figures"]["rows"][0]["train_s"] > 0
    assert [row["name"] for row in bf16["figures"]["rows"]] == ["ours tiny graphs"]


def test_a_command_that_fails_is_named_and_fails_the_check(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/gpu-check", "--device", "cpu", "--quick", "--only", "speed"]
    run = subprocess.run(
        [*command, "--release", str(tmp_path), "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "0 of 2 commands succeeded" in run.stdout
    assert "no net/mirage_tiny.py in it" in run.stdout
