"""The Triton kernels through Triton's interpreter: what they compute, not how fast, and not a GPU's memory model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mirage

NAMES = [
    "depthwise",
    "dynamic_depthwise",
    "gated_depthwise",
    "gated_values",
    "gram",
    "moments",
    "norm_linear",
]

pytestmark = [
    pytest.mark.timeout(900),  # a minute on a quiet machine, and the interpreter has one thread
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="Triton is not installed: it exists for Linux only"
    ),
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpreted.py"))],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mirage.__file__).parents[1])},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result: dict[str, Any] = json.loads(run.stdout)
    assert sorted(result) == sorted([*NAMES, "block"])
    return result


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_plain_form_in_fp32(found: dict[str, Any], name: str) -> None:
    assert len(found[name]["fp32"]) >= 2
    for size, error in found[name]["fp32"].items():
        assert error < 1e-5, size


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_inputs_are_added_up_in_fp32(found: dict[str, Any], name: str) -> None:
    # Two units in the last place: what passes from kernel to kernel is rounded as well, and the interpreter may cut
    # bits off where a GPU rounds.
    assert found[name]["bf16"] < 2**-6
    assert found[name]["fp16"] < 2**-9


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_give_the_same_bits(found: dict[str, Any], name: str) -> None:
    assert found[name]["repeats"]


@pytest.mark.parametrize("name", NAMES)
def test_operators_obey_the_rules_of_torch_library(found: dict[str, Any], name: str) -> None:
    assert found[name]["obeys"]


def test_a_whole_block_in_training_equals_its_plain_form(found: dict[str, Any]) -> None:
    assert found["block"] < 1e-5


def test_no_kernel_adds_atomically() -> None:
    sources = sorted(Path(mirage.__file__).with_name("kernels").glob("triton/*.py"))
    assert len(sources) >= 4
    for source in sources:
        assert "tl.atomic" not in source.read_text(), source.name


def test_the_model_is_imported_without_triton() -> None:
    code = "import sys, mirage; print('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
