"""The model of scaling: limits that can be worked out by hand, and simulations where they cannot."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from orchestrator.planning.scaling_model import (
    CheckpointPolicy,
    Network,
    StepCost,
    WorkerSpeed,
    best_checkpoint_steps,
    efficiency,
    predict,
    straggler_excess,
    useful_share,
)

LOAD = StepCost(parameters=6_207_412, blocks=35, norm_channels=20, embedding=128)
MACHINE = WorkerSpeed(step_seconds=0.01, image_seconds=0.01)
FREE = Network(0.0, float("inf"))
WIRE = Network(20e-6, 3e9)
CALM = CheckpointPolicy(checkpoint_seconds=0.0)


def test_free_communication_scales_as_far_as_the_fixed_part_of_a_step_lets_it() -> None:
    one, eight = (predict(n, 32, LOAD, MACHINE, FREE, CALM) for n in (1, 8))
    assert one.step == pytest.approx(0.33)
    assert eight.step == pytest.approx(0.01 + 4 * 0.01)
    assert efficiency(eight, one) == pytest.approx(0.33 / 0.05 / 8)


def test_equal_shares_of_free_workers_are_perfectly_efficient_in_weak_scaling() -> None:
    points = [predict(n, 8 * n, LOAD, MACHINE, FREE, CALM) for n in (1, 64, 4096)]
    assert [efficiency(p, points[0]) for p in points] == pytest.approx([1, 1, 1])
    assert [p.global_batch for p in points] == [8, 512, 32_768]


def test_a_step_takes_as_long_as_its_largest_share() -> None:
    assert predict(3, 8, LOAD, MACHINE, FREE).compute == predict(3, 9, LOAD, MACHINE, FREE).compute


def test_more_workers_than_images_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(ValueError, match="33 workers cannot share a micro-batch of 32"):
        predict(33, 32, LOAD, MACHINE, WIRE)
    with pytest.raises(ValueError, match="17 workers cannot share a micro-batch of 16"):
        predict(17, 32, replace(LOAD, micro_batches=2), MACHINE, WIRE)


def test_one_worker_talks_to_nobody() -> None:
    assert predict(1, 32, LOAD, MACHINE, WIRE).communication == 0


def test_a_ring_sends_almost_twice_the_bytes_whatever_the_number_of_workers() -> None:
    bandwidth = Network(0.0, 1e9)
    assert bandwidth.ring(1e9, 2) == pytest.approx(1.0)
    assert bandwidth.ring(1e9, 1000) == pytest.approx(2 * 0.999)
    latency = Network(1e-3, float("inf"))
    assert latency.ring(1e9, 5) == pytest.approx(8e-3)
    assert latency.tree(100, 8) == pytest.approx(6e-3)
    assert latency.tree(100, 9) == pytest.approx(8e-3)


def test_many_workers_reduce_by_a_tree_and_few_by_a_ring() -> None:
    size = 4.0 * LOAD.parameters
    assert WIRE.all_reduce(size, 8) == WIRE.ring(size, 8)
    assert WIRE.all_reduce(size, 4096) == pytest.approx(24 * 20e-6 + 2 * size / 3e9)
    assert WIRE.all_reduce(size, 4096) < WIRE.ring(size, 4096)


def test_synchronised_norms_are_seventy_latencies_of_a_tree_in_every_micro_batch() -> None:
    latency = Network(1e-4, float("inf"))
    assert predict(2, 32, LOAD, MACHINE, latency).norms == pytest.approx(70 * 2e-4)
    twice = predict(2, 32, replace(LOAD, micro_batches=2), MACHINE, latency)
    assert twice.norms == pytest.approx(2 * 70 * 2e-4)
    assert twice.gradients == predict(2, 32, LOAD, MACHINE, latency).gradients


def test_negatives_are_the_embeddings_of_both_depths_forward_and_backward() -> None:
    bandwidth = Network(0.0, 1e9)  # two workers send as many bytes as they reduce
    seconds = 2 * 2 * 4 * (128 / 2) * 32 / 1e9
    assert predict(2, 32, LOAD, MACHINE, bandwidth).negatives == pytest.approx(seconds)
    halves = predict(2, 32, replace(LOAD, micro_batches=2), MACHINE, bandwidth)
    assert halves.negatives == pytest.approx(seconds)


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_the_slowest_of_many_workers_is_that_of_drawn_times(workers: int) -> None:
    draw = random.Random(0)
    worst = [max(draw.gauss(1, 0.05) for _ in range(workers)) for _ in range(4000)]
    assert 1 + straggler_excess(workers, 0.05) == pytest.approx(sum(worst) / len(worst), abs=0.003)
    assert straggler_excess(1, 0.05) == 0


def simulated_share(step: float, rate: float, habits: CheckpointPolicy, stretches: int) -> float:
    """Progress over time of a run that is told step by step when it is preempted."""
    draw, clock, next_one = random.Random(1), 0.0, 0.0
    stretch = habits.checkpoint_steps * step + habits.checkpoint_seconds
    next_one = draw.expovariate(rate)
    for _ in range(stretches):
        while next_one < clock + stretch:
            clock = next_one + habits.restart_seconds
            next_one = clock + draw.expovariate(rate)  # without memory
        clock += stretch
    return stretches * habits.checkpoint_steps * step / clock


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 5e-3])
def test_what_preemptions_cost_is_what_a_simulated_run_loses(rate: float) -> None:
    habits = CheckpointPolicy(checkpoint_steps=100, checkpoint_seconds=2.0, restart_seconds=60.0)
    assert useful_share(1.0, rate, habits) == pytest.approx(
        simulated_share(1.0, rate, habits, 20_000), rel=0.03
    )


def test_without_preemptions_only_checkpoints_cost() -> None:
    assert useful_share(
        1.0, 0.0, CheckpointPolicy(checkpoint_steps=99, checkpoint_seconds=1.0)
    ) == pytest.approx(0.99)


def test_preemptions_of_thousands_of_workers_leave_nothing_and_say_so() -> None:
    spot = replace(MACHINE, preemptions_per_hour=0.05)
    assert predict(4096, 131_072, LOAD, spot, WIRE, CheckpointPolicy(checkpoint_steps=100_000)).useful == 0
    few, many = (predict(n, 32 * n, LOAD, spot, WIRE, CALM).useful for n in (8, 1024))
    assert few > 0.95 > many


def test_youngs_interval_is_the_best_of_those_near_it() -> None:
    steps = best_checkpoint_steps(1.0, 1e-3, 2.0)

    def share(n: int) -> float:
        return useful_share(1.0, 1e-3, CheckpointPolicy(n, 2.0, 60.0))

    assert share(steps) > max(share(steps // 2), share(2 * steps))


def test_gradients_are_four_bytes_for_each_parameter() -> None:
    point = predict(8, 32, LOAD, MACHINE, WIRE)
    assert point.gradients == WIRE.all_reduce(4 * LOAD.parameters, 8)
