"""The learning rate of every step, as the recipes state it."""

from __future__ import annotations

import pytest

from orchestrator.config.schedule import learning_rate, lr_scale, total_steps
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
