"""The moving average is torch's AveragedModel, and its numbers are those of the plain formula."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator.training import ema


class Net(nn.Module):
    """Parameters, floating-point buffers and an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


def test_every_update_equals_the_plain_formula_to_the_bit() -> None:
    torch.manual_seed(0)
    model = Net()
    average = ema.start(model)  # type: ignore[arg-type]
    assert not average.training
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.norm(torch.randn(2, 4, 5, 5))  # moves the statistics and counts the batch
        ema.update(average, model, 0.9, step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name].lerp_(tensor, 1 - decay)
            else:
                expected[name].copy_(tensor)
        found = average.module.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
