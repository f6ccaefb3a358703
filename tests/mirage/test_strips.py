import sys
from collections.abc import Iterator

import pytest
import torch

from mirage import MIRAGE, ModelConfig, restore
from mirage.strips import forward_in_strips

SMALL = {"dim": 6, "blocks": (1, 2, 1, 1), "refinement_blocks": 1, "heads": (1, 1, 2, 2)}
CONFIGS = {
    "paper": ModelConfig(**SMALL),
    "attention alone": ModelConfig(**SMALL, branch_ratios=(1, 0, 0)),
    "no attention": ModelConfig(**SMALL, branch_ratios=(0, 2, 1)),
    "convolution alone, no refinement": ModelConfig(
        **{**SMALL, "refinement_blocks": 0}, branch_ratios=(0, 1, 0)
    ),
    "static kernels": ModelConfig(**SMALL, kernels="static"),
    "concatenation": ModelConfig(**SMALL, fusion="concatenation"),
    "uneven ratios": ModelConfig(**{**SMALL, "dim": 12}, branch_ratios=(3, 2, 1), ffn_expansion=1.5),
}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def trained_looking(config: ModelConfig) -> MIRAGE:
    """Return a float64 model in which no norm, scale or temperature has its initial value."""
    torch.manual_seed(0)
    model = MIRAGE(config).double().eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.dim() <= 1:
            tensor.add_(0.2 * torch.rand_like(tensor))
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("strip_bytes", [1, 20_000, 10**9])
def test_strips_equal_the_whole_image(name: str, strip_bytes: int) -> None:
    model = trained_looking(CONFIGS[name])
    degraded = torch.rand(2, 3, 24, 16, dtype=torch.float64)
    found = forward_in_strips(model, degraded, strip_bytes)
    assert (found - model(degraded).image).abs().max() < 1e-12


def test_a_missing_halo_changes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_looking(CONFIGS["paper"])
    degraded = torch.rand(1, 3, 32, 16, dtype=torch.float64)
    for halo in ("MIXER_HALO", "FEED_FORWARD_HALO"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mirage.strips.{halo}", 0)
            assert (forward_in_strips(model, degraded, 1) - model(degraded).image).abs().max() > 1e-6, halo


def test_published_sizes_agree_to_1e_5_in_fp32() -> None:
    for config in (ModelConfig.tiny(), ModelConfig.small()):
        model = MIRAGE(config).eval()
        degraded = torch.rand(1, 3, 64, 40)
        found = forward_in_strips(model, degraded, 100_000)
        assert (found - model(degraded).image).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (9, 70), (70, 9), (33, 41)])
def test_restore_in_strips_takes_any_size(size: tuple[int, int]) -> None:
    model = trained_looking(CONFIGS["paper"]).float()
    degraded = torch.rand(3, *size)
    torch.testing.assert_close(
        restore(model, degraded, "strips"), restore(model, degraded, "whole"), rtol=0, atol=1e-5
    )


def test_auto_takes_strips_once_the_whole_image_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_looking(CONFIGS["paper"]).float()
    degraded = torch.rand(3, 32, 32)
    steps: list[tuple[int, int]] = []
    restore(model, degraded, progress=lambda *step: steps.append(step))
    assert not steps
    monkeypatch.setattr(sys.modules["mirage.inference"], "WHOLE_BYTES", 1000)
    restore(model, degraded, progress=lambda *step: steps.append(step))
    assert len(steps) == sum(stage.blocks for stage in model.config.stages())
    assert steps[-1][0] == steps[-1][1]


def test_training_mode_and_gradients_are_refused() -> None:
    model = trained_looking(CONFIGS["paper"])
    degraded = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    with torch.enable_grad(), pytest.raises(ValueError, match="inference_mode"):
        forward_in_strips(model, degraded)
    with pytest.raises(ValueError, match="eval"):
        forward_in_strips(model.train(), degraded)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the number of elements of the largest result."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        out = function(*arguments, **(options or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_no_map_is_larger_than_encoder_1() -> None:
    model = trained_looking(CONFIGS["paper"]).float()
    degraded = torch.rand(1, 3, 256, 64)
    largest = 256 * 64 * model.config.dim
    with Largest() as whole:
        model(degraded)
    with Largest() as strips:
        forward_in_strips(model, degraded, 50_000)
    assert strips.elements == largest < whole.elements
