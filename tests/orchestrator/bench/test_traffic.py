"""Launches, memory traffic and host synchronisations, counted in processes of their own (`fake_cuda.load`)."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirage import ModelConfig
from orchestrator.bench.kernel_count import BLOCKS, CHUNK, multi_tensor_launches
from orchestrator.planning import gpu_speed

ROOT = Path(__file__).parents[3]
RECORD = json.loads(gpu_speed.RECORD.read_text())


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
    assert row["operators"]["triton._convolve_and_gram"][0] == 35


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train fp32, 1 block a stage", "--precision fp32 --batch 2"),
        ("train bf16, 1 block a stage", "--precision bf16 --batch 2"),
        ("infer bf16, 1 block a stage", "--precision bf16 --batch 1 --crop 256 --what infer"),
    ],
)
def test_launches_and_traffic_have_not_grown_by_more_than_two_percent(
    name: str, arguments: str, tmp_path: Path
) -> None:
    """Run scripts/count-traffic after a change that lowers them, or that raises them for a reason."""
    [row] = count(tmp_path, "--blocks", "1", *arguments.split())["rows"]
    recorded = RECORD["counts"][name]
    for key in ("launches", "bytes_per_image"):
        assert row[key] <= 1.02 * recorded[key], key
    assert len(row["synchronisations"]) <= recorded["synchronisations"], row["synchronisations"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_formula_of_the_plan_gives_the_counts_that_it_was_fitted_to(precision: str) -> None:
    counted = RECORD["counts"][f"train {precision}, 2 blocks"]
    formula = gpu_speed.counts(half=precision == "bf16")
    config = ModelConfig(blocks=(2, 2, 2, 2), refinement_blocks=2)
    assert formula.launches(config) == pytest.approx(counted["launches"])
    assert formula.traffic(config, 2, 128) == pytest.approx(2 * counted["bytes_per_image"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_formula_of_the_plan_gives_the_counts_of_t_within_two_percent(precision: str) -> None:
    counted = RECORD["counts"][f"train {precision}, T"]
    formula = gpu_speed.counts(half=precision == "bf16")
    assert formula.launches(ModelConfig()) == pytest.approx(counted["launches"], rel=0.02)
    assert formula.traffic(ModelConfig(), 8, 128) == pytest.approx(8 * counted["bytes_per_image"], rel=0.02)


COMPILED = """
from orchestrator.bench import fake_cuda
fake_cuda.load()
import torch
from torch import nn
fake_cuda.pretend()
from orchestrator.bench import fake_inductor
from orchestrator.bench.kernel_count import counting
from orchestrator.bench.traffic import _Fake

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(32, 64))

    def forward(self, x):
        return torch.relu(x @ self.weight.T + 1) * 2

with _Fake(), torch.device("cuda"):
    model = Small()
    fake_inductor.compile_blocks(model, Small)
    for _ in range(2):  # the first compiles
        with counting(model, compiled=True) as count, torch.no_grad():
            model(torch.empty(128, 64))
print([(k.name, k.launches, k.traffic) for k in count.kernels])
"""


def test_compiled_code_counts_as_its_products_and_one_kernel_for_what_is_fused() -> None:
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    product, fused = 4 * (128 * 64 + 64 * 32 + 128 * 32), 4 * 2 * 128 * 32
    assert sorted(ast.literal_eval(done.stdout)) == [
        ("aten.mm", 1, product),
        ("inductor.pointwise", 1, fused),
    ]
