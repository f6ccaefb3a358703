"""The learning rate of every step, as the recipes state it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.schedule import Plateau, learning_rate, lr_scale, total_steps
from orchestrator.config.schema import Train

RELEASE = Train(epochs=150, schedule="release", schedule_epochs=150, learning_rate=2e-4)
PER_EPOCH = 10


@pytest.mark.parametrize(
    ("epoch", "rate"),
    # PROTOCOL 2.3: f(e) = 2e-4 e/14 before epoch 15, then 1e-4 (1 + cos(pi (e - 15) / 135)); epoch e uses f(e - 1).
    [(0, 0.0), (1, 0.0), (2, 2e-4 / 14), (15, 2e-4), (16, 2e-4), (120, 2.49e-5), (130, 1.17e-5)],
)
def test_release_schedule_lags_by_one_epoch_and_begins_with_two_at_zero(epoch: int, rate: float) -> None:
    for step in (epoch * PER_EPOCH, epoch * PER_EPOCH + PER_EPOCH - 1):
        assert learning_rate(RELEASE, step, PER_EPOCH) == pytest.approx(rate, rel=5e-3, abs=1e-12)


def test_cosine_warms_up_and_ends_near_zero() -> None:
    train = Train(steps=100, schedule="cosine", warmup_steps=10, learning_rate=1e-3)
    rates = [learning_rate(train, step, PER_EPOCH) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == pytest.approx(1e-3)
    assert rates == [*rates[:10], *sorted(rates[10:], reverse=True)]
    assert rates[-1] < 1e-6


def test_length_is_epochs_times_steps_or_the_steps_given() -> None:
    assert total_steps(Train(epochs=1.5), 10) == 15
    assert total_steps(Train(steps=7), 10) == 7


def test_a_run_has_at_least_one_step_however_short_its_epochs() -> None:
    assert total_steps(Train(epochs=0.01), 10) == 1


def test_cosine_is_half_way_down_in_the_middle_and_zero_beyond_its_end() -> None:
    train = Train(steps=110, schedule="cosine", warmup_steps=10, learning_rate=1e-3)
    assert learning_rate(train, 10, PER_EPOCH) == pytest.approx(1e-3)
    assert learning_rate(train, 35, PER_EPOCH) == pytest.approx(1e-3 * (2 + 2**0.5) / 4)
    assert learning_rate(train, 60, PER_EPOCH) == pytest.approx(5e-4)
    assert learning_rate(train, 110, PER_EPOCH) == learning_rate(train, 200, PER_EPOCH) == 0


def test_cosine_with_one_step_after_its_warm_up_falls_to_zero_in_it() -> None:
    for steps in (10, 11):
        train = Train(steps=steps, schedule="cosine", warmup_steps=10, learning_rate=1e-3)
        assert learning_rate(train, 10, PER_EPOCH) == pytest.approx(1e-3)
        assert learning_rate(train, 11, PER_EPOCH) == 0


def test_rules_for_the_rate_scale_from_the_published_batch() -> None:
    assert [lr_scale(rule, 32) for rule in ("fixed", "linear", "sqrt")] == [1, 1, 1]
    assert [lr_scale(rule, 512) for rule in ("fixed", "linear", "sqrt")] == [1, 16, 4]


class Optimizer(torch.optim.Optimizer):
    """What a scheduler of torch needs."""

    def __init__(self, rate: float) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros(()))], {"lr": rate})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Take no step."""


def rates_of_torch(make: Callable[[Optimizer], Any], rate: float, steps: int) -> list[float]:
    optimizer = Optimizer(rate)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_multistep_and_constant_are_those_of_torch() -> None:
    of = torch.optim.lr_scheduler
    cases = [
        ({"schedule": "cosine", "minimum_rate": 1e-5}, lambda o: of.CosineAnnealingLR(o, 50, 1e-5)),
        (
            {"schedule": "multistep", "milestones": [20, 35], "rate_factor": 0.5},
            lambda o: of.MultiStepLR(o, [20, 35], 0.5),
        ),
        ({"schedule": "constant"}, lambda o: of.LambdaLR(o, lambda _: 1.0)),
    ]
    for keys, make in cases:
        train = Train(steps=50, learning_rate=1e-3, **keys)
        ours = [learning_rate(train, step, PER_EPOCH) for step in range(50)]
        assert ours == pytest.approx(rates_of_torch(make, 1e-3, 50)), keys


def test_restarts_are_those_of_basicsr_as_restormer_uses_them() -> None:
    """Restormer: periods [92000, 208000], restart_weights [1, 1], eta_mins [3e-4, 1e-6]; here in thousandths."""
    cycles = [{"steps": 92, "minimum_rate": 3e-4}, {"steps": 208, "weight": 1.0, "minimum_rate": 1e-6}]
    train = Train(steps=300, learning_rate=3e-4, schedule="restarts", cycles=cycles)
    rates = [learning_rate(train, step, PER_EPOCH) for step in range(301)]
    assert rates[:93] == pytest.approx([3e-4] * 93)
    assert rates[92 + 104] == pytest.approx((3e-4 + 1e-6) / 2)
    assert rates[300] == pytest.approx(1e-6)
    assert learning_rate(train, 1000, PER_EPOCH) == pytest.approx(1e-6)


def basicsr_rate(
    periods: list[int], weights: list[float], minima: list[float], peak: float, step: int
) -> float:
    """As get_position_from_periods and get_lr of CosineAnnealingRestartCyclicLR."""
    ends = [sum(periods[: i + 1]) for i in range(len(periods))]
    now = next(i for i, end in enumerate(ends) if step <= end)
    done = (step - (0 if now == 0 else ends[now - 1])) / periods[now]
    return minima[now] + weights[now] * 0.5 * (peak - minima[now]) * (1 + math.cos(math.pi * done))


@given(
    cycles=st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from([1.0, 0.5]), st.sampled_from([0.0, 1e-3, 0.1])),
        min_size=1,
        max_size=4,
    )
)
def test_every_step_of_restarts_has_the_rate_of_basicsr_also_where_a_cycle_ends(
    cycles: list[tuple[int, float, float]],
) -> None:
    periods, weights, minima = (list(each) for each in zip(*cycles, strict=True))
    keys = [{"steps": n, "weight": w, "minimum_rate": low} for n, w, low in cycles]
    train = Train(steps=sum(periods), learning_rate=1.0, schedule="restarts", cycles=keys)
    for step in range(sum(periods) + 1):
        assert learning_rate(train, step, PER_EPOCH) == pytest.approx(
            basicsr_rate(periods, weights, minima, 1.0, step)
        )


@pytest.mark.parametrize(
    "keys",
    [
        {"schedule": "cosine"},
        {"schedule": "restarts", "cycles": [{"steps": 15}, {"steps": 75}]},
        {"schedule": "multistep", "milestones": [50]},
        {"schedule": "plateau"},
        {"schedule": "constant"},
    ],
)
def test_every_schedule_by_steps_begins_after_a_linear_warm_up(keys: dict[str, Any]) -> None:
    train = Train(steps=100, warmup_steps=10, learning_rate=1e-3, **keys)
    warm_up = [learning_rate(train, step, PER_EPOCH) for step in range(11)]
    assert warm_up == pytest.approx([*(1e-4 * n for n in range(1, 11)), 1e-3])


@given(
    scores=st.lists(st.sampled_from([20.0, 21.0, 22.0, 23.0, 24.0]), max_size=30), patience=st.integers(0, 3)
)
def test_a_plateau_is_that_of_torch(scores: list[float], patience: int) -> None:
    optimizer = Optimizer(1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", 0.5, patience, threshold=0, threshold_mode="abs", min_lr=0.1
    )
    train = Train(
        steps=100, schedule="plateau", patience=patience, rate_factor=0.5, learning_rate=1.0, minimum_rate=0.1
    )
    state = Plateau()
    for score in scores:
        reference.step(score)
        state = state.after(score, patience)
        assert learning_rate(train, 50, PER_EPOCH, state.reductions) == optimizer.param_groups[0]["lr"]


def test_a_score_that_is_not_finite_raises_no_best_score() -> None:
    state = Plateau().after(math.nan, 5).after(math.inf, 5)
    assert (state.best, state.waited) == (None, 2)
    assert state.after(20.0, 5) == Plateau(20.0)
