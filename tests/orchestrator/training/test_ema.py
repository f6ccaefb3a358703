"""The moving average has the numbers of the plain formula, and skipped steps leave no trace in it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from orchestrator.training.ema import WeightAverage


class Net(nn.Module):
    """Parameters, floating-point buffers and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.wide = nn.Linear(3, 3, dtype=torch.float64)
        self.half = nn.Linear(3, 3, dtype=torch.bfloat16)


@pytest.mark.parametrize("skipped", [set(), {0, 3, 4}])
def test_every_update_equals_the_plain_formula_to_the_bit(skipped: set[int]) -> None:
    torch.manual_seed(0)
    model = Net()
    average = WeightAverage(model)  # type: ignore[arg-type]
    assert not average.network.training
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(12):
        finite = step not in skipped
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) if finite else math.nan)
        model.norm(torch.randn(2, 4, 5, 5))  # moves the statistics and counts the batch
        average.set_weight(0.9, step)
        average.update(torch.tensor(finite))
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if not finite:
                tensor.copy_(before[name])
            elif tensor.is_floating_point():
                expected[name].lerp_(tensor, 1 - decay)
            else:
                expected[name].copy_(tensor)
        found = average.network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_buffer_that_the_network_replaces_is_averaged_too() -> None:
    model = Net()
    model.register_buffer("mean", torch.zeros(3))
    average = WeightAverage(model)  # type: ignore[arg-type]
    average.set_weight(0.9, 10)
    model.mean = model.mean + 1  # as `self.mean = 0.9 * self.mean + ...` in a forward pass does
    average.update(torch.tensor(True))
    assert float(average.network.mean[0]) > 0


def test_a_buffer_of_another_size_is_taken_and_one_of_shared_elements_left_alone() -> None:
    model = Net()
    model.register_buffer("grid", torch.zeros(3))
    model.register_buffer("shared", torch.ones(1).expand(4))
    average = WeightAverage(model)  # type: ignore[arg-type]
    average.set_weight(0.9, 10)
    model.grid = torch.ones(5)  # cached for the size of the input
    average.update(torch.tensor(True))
    assert torch.equal(average.network.grid, model.grid)
