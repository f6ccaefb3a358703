"""Each image loss is its published formula, and a mean over images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mirage.collective import BatchShare
from mirage.image_losses import IMAGE_LOSSES, image_loss
from mirage.loss import LossWeights, restoration_loss
from mirage.metrics import psnr, ssim
from mirage.model import Output


def mpr_laplacian(image: Tensor) -> Tensor:
    """As in MPRNet's losses.py."""
    row = torch.tensor([[0.05, 0.25, 0.4, 0.25, 0.05]], dtype=image.dtype)
    kernel = (row.T @ row).unsqueeze(0).repeat(3, 1, 1, 1)

    def smooth(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)

    coarse = torch.zeros_like(image)
    coarse[:, :, ::2, ::2] = smooth(image)[:, :, ::2, ::2] * 4
    return image - smooth(coarse)


def charbonnier(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt((x - y) ** 2 + 1e-3**2).mean()


REFERENCES = {
    "charbonnier": charbonnier,
    "mse": lambda x, y: ((x - y) ** 2).mean(),
    "psnr": lambda x, y: -psnr(x, y).mean(),
    "ssim": lambda x, y: 1 - ssim(x, y, "gaussian11").mean(),
    "edge": lambda x, y: charbonnier(mpr_laplacian(x), mpr_laplacian(y)),
}


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    clean = torch.rand(4, 3, 16, 25, dtype=torch.float64)
    return (clean + 0.1 * torch.randn_like(clean)).clamp(0, 1), clean


@pytest.mark.parametrize("name", IMAGE_LOSSES)
def test_a_loss_is_its_published_formula(pair: tuple[Tensor, Tensor], name: str) -> None:
    torch.testing.assert_close(image_loss(name, *pair), REFERENCES[name](*pair), rtol=1e-5, atol=0)
    assert image_loss(name, pair[1], pair[1]) < image_loss(name, *pair)


@pytest.mark.parametrize("name", IMAGE_LOSSES)
def test_shares_add_up_to_the_weighted_term(pair: tuple[Tensor, Tensor], name: str) -> None:
    restored, clean = pair
    weights = LossWeights(l1=0.5, fourier=0, spd=0, **{name: 3})
    whole = restoration_loss(Output(restored, None, None), clean, weights)
    assert list(whole.terms()) == ["total", "l1", "fourier", "spd", name]
    torch.testing.assert_close(whole.total, 0.5 * whole.l1 + 3 * whole.others[name])
    parts = [
        restoration_loss(Output(restored[rows], None, None), clean[rows], weights, BatchShare(rows.start, 4))
        for rows in (slice(0, 3), slice(3, 4))
    ]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    torch.testing.assert_close(sum(part.others[name] for part in parts), whole.others[name])


class Operations(TorchDispatchMode):
    """The names of all operations that torch executes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def may_round_to_tf32(names: set[str]) -> set[str]:
    return {
        name for name in names if "conv" in name or name in ("mm", "bmm", "addmm", "baddbmm", "mv", "dot")
    }


@pytest.mark.parametrize("name", IMAGE_LOSSES)
def test_no_term_and_no_gradient_uses_what_rounds_to_tf32(pair: tuple[Tensor, Tensor], name: str) -> None:
    restored = pair[0].clone().requires_grad_()
    with Operations() as seen:
        image_loss(name, restored, pair[1]).backward()
    assert "mean" in seen.names or "mse_loss_backward" in seen.names
    assert not may_round_to_tf32(seen.names)

    filters = torch.ones(3, 3, 2, 2, dtype=torch.float64)
    with Operations() as seen:
        F.conv2d(restored, filters).sum().backward()
    assert may_round_to_tf32(seen.names) == {"convolution", "convolution_backward"}


@pytest.mark.parametrize("name", IMAGE_LOSSES)
def test_gradients_are_finite_for_equal_images_and_under_autocast(name: str) -> None:
    clean = torch.rand(2, 3, 16, 16)
    restored = clean.bfloat16().float() if name == "psnr" else clean.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = image_loss(name, restored.bfloat16().requires_grad_(), clean)
        exact = restored.clone().requires_grad_()
        image_loss(name, exact, clean).backward()
    assert loss.dtype == torch.float32
    assert exact.grad is not None
    assert exact.grad.isfinite().all()


def test_the_perceptual_term_needs_its_network(pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="needs a PerceptualDistance"):
        restoration_loss(Output(pair[0], None, None), pair[1], LossWeights(spd=0, perceptual=1))
