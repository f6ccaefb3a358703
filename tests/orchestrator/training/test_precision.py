"""Precisions of a run: what is scaled, skipped and resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.job_types import JobOutcome
from orchestrator.errors import JobFileError
from orchestrator.training import checkpoint
from orchestrator.training.engines.base import Engine
from orchestrator.training.engines.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, LossScale
from orchestrator.training.loop import train
from shards.store import LocalStore
from tests.claims import assert_same_weights, final_weights
from tests.orchestrator.training.test_loop import CPU, Listener, run


def test_the_scale_halves_after_an_overflow_and_doubles_after_long_calm() -> None:
    finite, overflow = torch.tensor(True), torch.tensor(False)
    scale = LossScale(CPU)
    scale.update(overflow)
    assert scale.factor == INITIAL_SCALE / 2
    for _ in range(GROWTH_INTERVAL):
        assert scale.factor == INITIAL_SCALE / 2
        scale.update(finite)
    assert scale.factor == INITIAL_SCALE
    scale.update(finite)
    other = LossScale(CPU)
    other.load(scale.state())
    assert other.state() == scale.state() == {"factor": INITIAL_SCALE, "held": 1}


def test_an_overflowing_norm_of_finite_gradients_skips_the_step_that_torchs_grad_scaler_takes() -> None:
    engine = Engine(CPU, "fp16")
    assert engine.loss_scale is not None
    engine.loss_scale.factor.fill_(1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.zeros(()))
    ours, theirs = (nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizers = [
        torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1, fused=True) for parameter in (ours, theirs)
    ]
    for parameter in (ours, theirs):
        parameter.grad = torch.full((4,), 3e38)  # the squares do not fit fp32, nor does the norm, 6e38

    assert engine.step(optimizers[0], 1.0).isinf()
    scaler.unscale_(optimizers[1])
    nn.utils.clip_grad_norm_([theirs], 1.0)
    scaler.step(optimizers[1])
    scaler.update()

    assert torch.equal(ours, torch.ones(4))
    assert not any(value.any() for value in optimizers[0].state[ours].values())
    assert engine.loss_scale.factor == 0.5
    assert not torch.equal(theirs, torch.ones(4))  # clipped to zero, then decayed
    assert scaler.get_scale() == 1.0


class Half(Engine):
    """fp16, with a gradient that overflows in the second step."""

    steps = 0

    def __init__(self) -> None:
        super().__init__(CPU, "fp16")

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
        self.steps += 1
        if self.steps == 2 and parameters[0].grad is not None:
            parameters[0].grad.fill_(float("inf"))
        return super().clip(parameters, max_norm)


def half_job(small_job):
    return small_job(train={"precision": "fp16"})


def test_fp16_trains_skips_an_overflow_and_halves_its_scale(small_job, small_data, tmp_path) -> None:
    engine, driver = Half(), Listener()
    run(half_job(small_job), small_data, tmp_path, driver, engine)
    assert driver.scalars[6]["optim/skipped_steps"] >= 1
    assert engine.loss_scale is not None
    assert engine.loss_scale.factor < INITIAL_SCALE
    assert all(torch.isfinite(t).all() for t in final_weights(tmp_path).values())
    assert driver.scalars[6]["optim/grad_norm"] < 1e3  # the scale has been taken off


def test_fp16_and_bf16_take_nearly_the_steps_of_fp32(small_job, small_data, tmp_path) -> None:
    terms = {}
    for precision in ("fp32", "tf32", "bf16", "fp16"):
        driver = Listener()
        job = small_job(train={"precision": precision})
        engine = Engine(CPU, precision)
        if engine.loss_scale is not None:
            engine.loss_scale.factor.fill_(1024.0)
        run(job, small_data, tmp_path / precision, driver, engine)
        terms[precision] = driver.scalars[6]
    whole = terms["fp32"]
    assert terms["tf32"]["loss/total"] == whole["loss/total"]  # no GPU, nothing to round
    for precision in ("bf16", "fp16"):
        found = terms[precision]
        assert found["loss/total"] != whole["loss/total"]
        assert found["loss/total"] == pytest.approx(whole["loss/total"], rel=0.02)
        assert found["optim/grad_norm"] == pytest.approx(whole["optim/grad_norm"], rel=0.2)


def test_fp16_goes_on_bit_for_bit_with_its_scale(small_job, small_data, tmp_path) -> None:
    job = half_job(small_job)
    whole, stopped, forgetful = tmp_path / "whole", tmp_path / "stopped", tmp_path / "forgetful"
    run(job, small_data, whole, engine=Half())
    for folder in (stopped, forgetful):
        assert run(job, small_data, folder, Listener(stop_after=4), Half()) == JobOutcome("stopped", 4, 6)
    record = json.loads(max((stopped / "checkpoints").iterdir()).read_bytes())
    assert record["gradient_scale"]["factor"] < INITIAL_SCALE

    engine = Engine(CPU, "fp16")
    run(job, small_data, stopped, engine=engine)
    assert_same_weights(final_weights(stopped), final_weights(whole))
    expected = json.loads(max((whole / "checkpoints").iterdir()).read_bytes())["gradient_scale"]
    assert json.loads(max((stopped / "checkpoints").iterdir()).read_bytes())["gradient_scale"] == expected


def test_a_resume_that_forgets_the_scale_is_told(
    small_job, small_data, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = half_job(small_job)
    run(job, small_data, tmp_path, Listener(stop_after=4), Half())
    load = checkpoint.Checkpoints.load
    monkeypatch.setattr(
        checkpoint.Checkpoints, "load", lambda self, name: replace(load(self, name), gradient_scale={})
    )
    engine = Engine(CPU, "fp16")
    train(job, small_data, LocalStore(tmp_path), engine, Listener(), "test")
    record = json.loads(max((tmp_path / "checkpoints").iterdir()).read_bytes())
    assert record["gradient_scale"]["held"] <= 2  # that of the whole run has held since step 2


def test_precisions_that_cannot_be_are_refused(small_job) -> None:
    with pytest.raises(JobFileError, match="fp16 on CPU workers is slower"):
        small_job(train={"precision": "fp16"}, recipe="authors")
