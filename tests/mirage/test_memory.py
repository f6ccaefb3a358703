"""The memory model against what autograd keeps, for both forms of a block, both precisions, and recomputation."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mirage import MIRAGE, ModelConfig
from mirage.config import Recompute
from mirage.kernels import dispatch, triton
from mirage.memory import Form, Kept, Precision, activation_bytes, cast_bytes, recomputed_bytes
from tests.mirage import composed_kept

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
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """Have blocks computed in this form; Triton's kernels are replaced by plain PyTorch, which keeps the same."""
    wanted: Form = request.param
    if wanted == "composed":
        names = ("depthwise", "gated", "norm_linear", "reductions")
        for name in names:
            monkeypatch.setattr(triton, name, None, raising=False)
            monkeypatch.setitem(sys.modules, f"mirage.kernels.triton.{name}", torch)
        monkeypatch.setattr(dispatch, "INTERPRETED", True)
        monkeypatch.setattr(dispatch, "HAS_TRITON", True)
        composed_kept.stand_in_all()
    return wanted


def kept(config: ModelConfig, precision: Precision, recompute: Recompute, side: int = SIDE) -> int:
    """Bytes of two images that autograd keeps, each storage once, without the weights."""
    model, found = MIRAGE(config), dict[int, Tensor]()
    model.recompute(recompute)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        output = model(torch.rand(2, 3, side, side), torch.arange(2))
    assert output.image.requires_grad
    return sum(x.untyped_storage().nbytes() for address, x in found.items() if address not in weights)


@pytest.mark.parametrize("form", ["regions", "composed"], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_memory_model_is_within_a_twentieth_of_what_autograd_keeps(
    name: str, precision: Precision, form: Form
) -> None:
    config = CONFIGS[name]
    predicted = 2 * activation_bytes(config, SIDE, SIDE, Kept(precision, form=form))
    predicted += cast_bytes(config, precision)
    assert predicted == pytest.approx(kept(config, precision, "none"), rel=0.05)


@pytest.mark.parametrize("form", ["regions", "composed"], indirect=True)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["full_resolution", "all"])
def test_recomputed_blocks_keep_their_input_alone(
    recompute: Recompute, precision: Precision, form: Form
) -> None:
    predicted = 2 * activation_bytes(BASE, SIDE, SIDE, Kept(precision, recompute, form))
    if recompute != "all":
        predicted += cast_bytes(BASE, precision)
    assert predicted == pytest.approx(kept(BASE, precision, recompute), rel=0.08)


def test_what_is_kept_is_linear_in_pixels() -> None:
    sizes = [kept(BASE, "fp32", "none", side) for side in (32, 48, 64)]
    slope = (sizes[2] - sizes[0]) / (64**2 - 32**2)
    assert sizes[1] == pytest.approx(sizes[0] + slope * (48**2 - 32**2), rel=1e-3)
    model = 2 * (activation_bytes(BASE, 64, 64) - activation_bytes(BASE, 32, 32)) / (64**2 - 32**2)
    assert slope == pytest.approx(model, rel=0.005)


def test_one_block_at_a_time_comes_back_where_blocks_run_again() -> None:
    config = ModelConfig.tiny()
    again = Kept(recompute="all", form="composed")
    assert recomputed_bytes(config, 128, 128) == 0
    largest = recomputed_bytes(config, 128, 128, again)
    whole = activation_bytes(config, 128, 128, Kept(form="composed"))
    assert activation_bytes(config, 128, 128, again) + largest < whole / 3
