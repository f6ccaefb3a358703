"""The costs of a network of the user's own are those of its layers, without running it on numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job, Model
from orchestrator.planning.network_cost import network_cost, training_memory
from tests.orchestrator.conftest import SMALL

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, looks=False):
        super().__init__()
        self.looks = looks
        self.into, self.act, self.out = nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1)

    def forward(self, x):
        if self.looks and x.mean() > 0.5:
            return x
        return self.out(self.act(self.into(x)))
"""


@pytest.fixture
def model(tmp_path: Path):
    name = f"costs_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(NETWORK)
    yield lambda **arguments: {"class": f"{name}:Net", "path": str(tmp_path), "arguments": arguments}
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def job(model: dict[str, object], **workers: object) -> Job:
    values = {**SMALL, "model": model, "loss": {"spd_weight": 0}, "workers": workers or {"max": 1}}
    found = job_from_mapping(values)
    assert isinstance(found, Job)
    return found


def test_parameters_and_multiply_adds_are_those_of_the_layers(model) -> None:
    found = network_cost(Model.model_validate(model(width=8)), 32)
    assert found.parameters == (3 * 9 + 1) * 8 + (8 + 1) * 3
    assert found.macs == 32 * 32 * (3 * 9 * 8 + 8 * 3)


def test_the_activations_are_what_autograd_keeps(model) -> None:
    found = training_memory(job(model(width=8)), 1)
    assert found is not None
    pixels = SMALL["data"]["crop_pixels"] ** 2  # type: ignore[index]
    image, features = 4 * 3 * pixels, 4 * 8 * pixels
    assert found.image_bytes == image + features + image  # the input, ReLU's output, and the image itself
    assert found.estimate.activations == 6 * found.image_bytes
    state = found.estimate.total - found.estimate.activations
    assert found.images_in(state + 10 * found.image_bytes) == 10
    assert found.images_in(state - 1) == 0


def test_a_network_that_looks_at_values_has_known_parameters_only(model) -> None:
    found = network_cost(Model.model_validate(model(looks=True)), 32)
    assert (found.parameters > 0, found.macs) == (True, None)
    assert "meta" in found.reason
    assert training_memory(job(model(looks=True)), 1) is None
