"""The memory model against what autograd keeps, for both backends, both precisions, and activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from mirage import MIRAGE, ModelConfig
from mirage.config import ActivationCheckpointing
from mirage.memory import Backend, Precision, StepMode, activation_bytes, cast_bytes, recomputed_bytes
from tests.mirage.kept_memory import kept_bytes, on_backend

BASE = ModelConfig(dim=12, blocks=(1, 2, 1, 2), refinement_blocks=1, heads=(1, 1, 2, 2))
CONFIGS = {
    "1:1:1": BASE,
    "2:1:1": replace(BASE, branch_ratios=(2, 1, 1)),
    "1:0:0": replace(BASE, branch_ratios=(1, 0, 0)),
    "1:1:0": replace(BASE, branch_ratios=(1, 1, 0)),
    "concatenation": replace(BASE, fusion="concatenation"),
    "static, no heads": replace(BASE, kernels="static", alignment="none"),
    "ffn 1.5": replace(BASE, ffn_expansion=1.5),
    "T's widths": ModelConfig(blocks=(1, 1, 1, 1), refinement_blocks=1),
}
SIDE = 64


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Compute with this backend."""
    with on_backend(request.param):
        yield request.param


def kept(config: ModelConfig, precision: Precision, which: ActivationCheckpointing, side: int = SIDE) -> int:
    """Return the bytes that autograd keeps of two images, each storage once, without the weights."""
    model = MIRAGE(config)
    model.checkpoint_activations(which)
    return kept_bytes(model, side, precision)


@pytest.mark.parametrize("backend", ["cpu", "triton"], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_memory_model_is_within_a_twentieth_of_what_autograd_keeps(
    name: str, precision: Precision, backend: Backend
) -> None:
    config = CONFIGS[name]
    predicted = 2 * activation_bytes(config, SIDE, SIDE, StepMode(precision, backend=backend))
    if backend == "cpu":
        predicted += cast_bytes(config, precision)
    assert predicted == pytest.approx(kept(config, precision, "none"), rel=0.05)


@pytest.mark.parametrize("backend", ["cpu", "triton"], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("which", ["full_resolution", "all"])
def test_checkpointed_blocks_keep_their_input_alone(
    which: ActivationCheckpointing, precision: Precision, backend: Backend
) -> None:
    predicted = 2 * activation_bytes(BASE, SIDE, SIDE, StepMode(precision, which, backend))
    if which != "all" and backend == "cpu":
        predicted += cast_bytes(BASE, precision)
    assert predicted == pytest.approx(kept(BASE, precision, which), rel=0.08)


def test_what_is_kept_is_linear_in_pixels() -> None:
    sizes = [kept(BASE, "fp32", "none", side) for side in (32, 48, 64)]
    slope = (sizes[2] - sizes[0]) / (64**2 - 32**2)
    assert sizes[1] == pytest.approx(sizes[0] + slope * (48**2 - 32**2), rel=1e-3)
    model = 2 * (activation_bytes(BASE, 64, 64) - activation_bytes(BASE, 32, 32)) / (64**2 - 32**2)
    assert slope == pytest.approx(model, rel=0.005)


def test_checkpointing_brings_back_one_block_at_a_time() -> None:
    config = ModelConfig.tiny()
    again = StepMode(activation_checkpointing="all", backend="triton")
    assert recomputed_bytes(config, 128, 128) == 0
    largest = recomputed_bytes(config, 128, 128, again)
    whole = activation_bytes(config, 128, 128, StepMode(backend="triton"))
    assert activation_bytes(config, 128, 128, again) + largest < whole / 3
