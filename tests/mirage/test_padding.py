from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mirage import MIRAGE, ModelConfig, load, restore, save
from mirage.blocks import FeedForward, GatedConvolution
from mirage.config import Kernels
from mirage.padding import padded
from mirage.weights import WeightsError, save_release

NARROW = ModelConfig(dim=12, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2), ffn_expansion=1.7)


def made(config: ModelConfig) -> MIRAGE:
    """Return a model in which no batch-norm statistic or temperature has its initial value."""
    torch.manual_seed(0)
    model = MIRAGE(config)
    for module in model.modules():
        if isinstance(module, GatedConvolution):
            module.temperature.data.fill_(1.3)
            module.norm.running_mean.normal_()
            module.norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("config", [ModelConfig.tiny(), ModelConfig.small(), NARROW])
def test_a_padded_model_gives_the_same_images(config: ModelConfig) -> None:
    model, degraded = made(config), torch.rand(1, 3, 32, 24)
    aligned = padded(model)
    with torch.inference_mode():
        torch.testing.assert_close(aligned(degraded).image, model(degraded).image, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernels", ["dynamic", "static"])
def test_padding_is_exact_in_float64_in_strips_too(kernels: Kernels) -> None:
    model = made(replace(NARROW, kernels=kernels)).double()
    degraded = torch.rand(3, 61, 30, dtype=torch.float64)
    for mode in ("whole", "strips"):
        found, plain = (restore(each, degraded, mode) for each in (padded(model), model))
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-14)


def test_hidden_widths_are_multiples_and_the_model_itself_stays() -> None:
    model = made(NARROW)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    widths = [
        m.contract.in_features
        for m in padded(model).modules()
        if isinstance(m, FeedForward | GatedConvolution)
    ]
    assert widths
    assert all(width % 8 == 0 for width in widths)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert any(m.contract.in_features % 8 for m in model.modules() if isinstance(m, GatedConvolution))


def test_it_is_an_option_of_load_and_a_padded_model_is_not_saved(tmp_path: Path) -> None:
    model, degraded = made(NARROW), torch.rand(3, 16, 16)
    save(model, tmp_path / "weights.safetensors")
    aligned = load(tmp_path / "weights.safetensors", align=8)
    torch.testing.assert_close(restore(aligned, degraded), restore(model, degraded), rtol=1e-6, atol=1e-6)
    for write in (save, save_release):
        with pytest.raises(WeightsError, match=r"padded to multiples of 8.*Save the original model"):
            write(aligned, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(ValueError, match="for inference only"):
        load(tmp_path / "weights.safetensors", training=True, align=8)
