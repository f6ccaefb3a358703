from dataclasses import replace

import pytest
import torch

from mirage import MIRAGE, ModelConfig

SMALL = ModelConfig(dim=12, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2))


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "with_head", "without_head", "tensors"),
    [(ModelConfig.tiny(), 6_207_412, 6_158_576, 964), (ModelConfig.small(), 9_678_983, 9_629_499, 991)],
)
def test_parameter_counts_are_the_papers(
    config: ModelConfig, with_head: int, without_head: int, tensors: int
) -> None:
    with torch.device("meta"):
        model = MIRAGE(config)
    heads = parameters(model.spd_shallow) + parameters(model.spd_latent)
    assert parameters(model) == with_head
    assert parameters(model) - heads == without_head
    assert len(model.state_dict()) == tensors


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, dim=8, branch_ratios=(2, 1, 1)),
        replace(SMALL, branch_ratios=(0, 1, 2)),
        replace(SMALL, branch_ratios=(1, 0, 1)),
        replace(SMALL, branch_ratios=(1, 1, 0)),
        replace(SMALL, branch_ratios=(1, 0, 0)),
        replace(SMALL, branch_ratios=(3, 2, 1), spd_channels=(3, 5), spd_embed_dim=7),
        replace(SMALL, shallow_tap="patch_embed", batch_norm="local", ffn_expansion=1.5),
    ],
)
def test_any_configuration_trains_and_restores(config: ModelConfig) -> None:
    model = MIRAGE(config)
    degraded = torch.rand(2, 3, 16, 24)
    out = model(degraded)
    assert out.image.shape == degraded.shape
    assert out.shallow.shape == out.latent.shape == (2, config.spd_embed_dim)
    (out.image.sum() + (out.shallow @ out.latent.T)[0, 1]).backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []
    out = model.eval()(degraded)
    assert out.shallow is None
    assert out.latent is None


def test_the_head_is_not_run_at_inference() -> None:
    model = MIRAGE(SMALL).eval()
    torch.nn.init.constant_(model.spd_latent.project.weight, torch.nan)
    calls = []
    model.spd_latent.register_forward_hook(lambda *_: calls.append(1))
    model(torch.rand(1, 3, 8, 8))
    assert calls == []


def test_inference_does_not_depend_on_the_other_images() -> None:
    torch.manual_seed(0)
    model = MIRAGE(SMALL).double().eval()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    together = model(images).image
    alone = torch.cat([model(image[None]).image for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_the_same_input_gives_the_same_bits() -> None:
    model = MIRAGE(SMALL)
    images, keys = torch.rand(2, 3, 16, 16), torch.tensor([5, 6])

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        out = model(images, keys)
        (out.image.square().mean() + (out.shallow @ out.latent.T).sum()).backward()
        return [out.image.detach(), *(p.grad.clone() for p in model.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(step(), step(), strict=True))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 20)])
def test_a_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        MIRAGE(SMALL)(torch.rand(shape))


def test_training_needs_two_latent_pixels() -> None:
    with pytest.raises(ValueError, match="covariance"):
        MIRAGE(SMALL)(torch.rand(2, 3, 8, 8))
