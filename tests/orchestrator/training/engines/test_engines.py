"""Every engine takes the same steps, 6 or 20, however the 8 images of a step are shared out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.orchestrator.training.engines import world
from tests.processes import run_processes

Results = dict[str, dict[str, Tensor]]

MICRO = "ddp, 2 micro-batches"
BROKEN = ("broken batch norm", "broken negatives", "broken drop path")
FP32 = ("ddp, fp32", "ddp, fp32, 2 micro-batches", "ddp, fp32, clipped")
WITH_NAN = tuple(f"zero {stage}, NaN" for stage in range(4))
HALF = tuple(f"zero {stage}, fp16" for stage in range(4))
ZERO = {
    **{f"zero {stage}": "ddp, fp32" for stage in range(4)},
    "zero 2, 2 micro-batches": "ddp, fp32, 2 micro-batches",
    "zero 1, clipped": "ddp, fp32, clipped",
}
"""Scenario with DeepSpeed -> the one whose steps it takes."""


def run(folder: Path, shares: str, scenarios: tuple[str, ...]) -> Results:
    """Run scenarios in as many processes as there are shares, which meet over gloo, without Ray."""
    sizes = [int(size) for size in shares.split(",")]
    also = ["deepspeed"] if any("zero" in name for name in scenarios) else []
    meeting = str(folder / f"meet {shares}")
    run_processes(world.main, len(sizes), sizes, meeting, folder / shares, scenarios, also=also)
    results: Results = torch.load(folder / shares)
    return results


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    folder = tmp_path_factory.mktemp("ddp")
    wide, narrow = ("ddp", MICRO, *BROKEN), ("ddp",)
    return {
        s: run(folder, s, wide if s in ("8", "3,3,2") else narrow) for s in ("8", "4,4", "2,2,2,2", "3,3,2")
    }


@pytest.fixture(scope="module")
def fp32_worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results]:
    folder = tmp_path_factory.mktemp("zero")
    return {
        "3,3,2": run(folder, "3,3,2", (*FP32, *ZERO, "ddp, NaN", *WITH_NAN, "ddp, fp16", *HALF)),
        "8": run(folder, "8", FP32),
    }


def difference(a: dict[str, Tensor], b: dict[str, Tensor], name: str = "losses") -> Tensor:
    """Relative difference per step that both took."""
    steps = min(len(a[name]), len(b[name]))
    return ((a[name][:steps].double() - b[name][:steps].double()) / b[name][:steps].double()).abs()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("shares", ["4,4", "2,2,2,2", "3,3,2"])
def test_losses_and_gradients_of_20_steps_do_not_depend_on_the_number_of_workers(
    worlds: dict[str, Results], shares: str
) -> None:
    alone, shared = worlds["8"]["ddp"], worlds[shares]["ddp"]
    assert len(alone["losses"]) == 20
    assert float(alone["moved"]) > 1e-2
    assert float(difference(shared, alone).max()) < 1e-9
    assert float(difference(shared, alone, "norms").max()) < 1e-9
    weights = [name for name in alone if name.startswith("weight ") and "reduce.bias" not in name]
    assert max(float((alone[name] - shared[name]).abs().max()) for name in weights) < 1e-9


def test_micro_batches_belong_to_the_job(worlds: dict[str, Results]) -> None:
    alone, shared = (worlds[shares][MICRO] for shares in ("8", "3,3,2"))
    assert float(difference(shared, alone).max()) < 1e-9
    assert float(difference(alone, worlds["8"]["ddp"]).max()) > 1e-3


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_not_shared_is_noticed(worlds: dict[str, Results], broken: str) -> None:
    assert float(difference(worlds["3,3,2"][broken], worlds["8"][broken]).max()) > 1e-5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ZERO)
@pytest.mark.parametrize("shares", ["8", "3,3,2"])
def test_deepspeed_takes_the_steps_of_ddp(fp32_worlds: dict[str, Results], engine: str, shares: str) -> None:
    found, expected = fp32_worlds["3,3,2"][engine], fp32_worlds[shares][ZERO[engine]]
    losses = difference(found, expected)
    assert float(losses[0]) < 1e-5
    assert float(difference(found, expected, "norms")[0]) < 1e-5
    assert float(found["moved"]) > 1e-2
    # Adam on gradients that clipping made equally long magnifies rounding: DDP differs from itself as much.
    assert float(losses[4 if "clipped" in engine else -1]) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["ddp, NaN", *WITH_NAN])
def test_a_nan_of_one_worker_skips_the_step_of_all_and_training_continues(
    fp32_worlds: dict[str, Results], engine: str
) -> None:
    found, expected = fp32_worlds["3,3,2"][engine], fp32_worlds["3,3,2"]["ddp, NaN"]
    assert torch.isfinite(found["norms"]).tolist() == [True, True, False, True, True, True]
    assert all(bool(torch.isfinite(found[name]).all()) for name in found if name.startswith("weight "))
    others = torch.tensor([0, 1, 3, 4, 5])
    assert float(difference(found, expected)[others].max()) < 1e-4
    # Without a skipped step the losses after it are others.
    assert float(difference(found, fp32_worlds["3,3,2"]["ddp, fp32"])[3]) > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", HALF)
def test_deepspeed_scales_the_loss_of_fp16_as_ddp_does_and_clips_the_gradient_itself(
    fp32_worlds: dict[str, Results], engine: str
) -> None:
    found, expected = fp32_worlds["3,3,2"][engine], fp32_worlds["3,3,2"]["ddp, fp16"]
    finite = torch.isfinite(expected["norms"])
    assert 1 <= int((~finite).sum()) <= 4
    assert torch.equal(torch.isfinite(found["norms"]), finite)
    assert torch.equal(found["scales"], expected["scales"])
    first = int(finite.nonzero()[0])
    assert float(difference(found, expected)[: first + 1].max()) < 1e-5
    assert float(difference(found, expected, "norms")[first]) < 1e-3
    assert float(found["moved"]) > 3e-3
    # Half rounds what differs in the last bit of a weight to differ by a thousandth.
    assert float(difference(found, expected)[-1]) < 1e-2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_zero_stage_1_on_the_optimizer_has_no_gradients_that_a_grad_scaler_could_unscale(
    fp32_worlds: dict[str, Results],
) -> None:
    before_step = {engine: fp32_worlds["3,3,2"][engine]["gradients"] for engine in ("ddp, fp16", *HALF)}
    assert all(bool((before_step[engine] > 0).all()) for engine in ("ddp, fp16", "zero 0, fp16"))
    assert not any(bool(before_step[engine].any()) for engine in HALF[1:])
