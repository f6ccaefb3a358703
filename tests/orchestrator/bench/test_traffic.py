"""Launches, memory traffic and host synchronisations, counted in processes of their own (`fake_cuda.load`)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bench.kernel_count import BLOCKS, CHUNK, multi_tensor_launches

ROOT = Path(__file__).parents[3]


def count(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "count.json"
    command = [sys.executable, "-W", "ignore", "-m", "orchestrator.bench", "traffic", "--json", str(file)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(file.read_text())
    return record


@pytest.mark.parametrize(
    ("sizes", "lists", "launches"),
    [
        ([], 1, 0),
        ([1], 1, 1),
        ([0, 5], 1, 1),
        ([10] * 110, 1, 1),
        ([10] * 111, 1, 2),
        ([10] * 37, 4, 2),
        ([CHUNK * BLOCKS], 2, 1),
        ([CHUNK * BLOCKS + 1], 2, 2),
    ],
)
def test_a_multi_tensor_launch_holds_a_bounded_number_of_tensors_and_chunks(
    sizes: list[int], lists: int, launches: int
) -> None:
    assert multi_tensor_launches(sizes, lists) == launches


def test_inference_is_counted_without_a_gpu_and_never_waits_for_the_device(tmp_path: Path) -> None:
    [row] = count(tmp_path, "--what", "infer", "--batch", "1", "--crop", "64")["rows"]
    assert row["synchronisations"] == []
    assert row["launches"] == sum(launches for launches, _ in row["operators"].values())
    assert row["bytes_per_image"] == sum(size for _, size in row["modules"].values())
    assert row["operators"]["triton._gram"][0] == 35
