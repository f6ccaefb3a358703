import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor
from torch.autograd import gradcheck

from mirage import MIRAGE, ModelConfig
from mirage.config import Alignment
from mirage.loss import LossWeights, restoration_loss
from mirage.spd import SPDHead, geodesic_distances, info_nce, matrix_log, regularized

ALIGNMENTS: tuple[Alignment, ...] = ("spd", "euclidean", "log_euclidean", "geodesic")


def positive(count: int, size: int = 4) -> Tensor:
    torch.manual_seed(count)
    x = torch.randn(count, size, 2 * size, dtype=torch.float64)
    return x @ x.mT / size + 0.05 * torch.eye(size, dtype=torch.float64)


def test_the_logarithm_is_scipys() -> None:
    matrices = positive(5)
    expected = np.stack([linalg.logm(m.numpy()) for m in matrices])
    np.testing.assert_allclose(matrix_log(matrices).numpy(), expected, atol=1e-12)


def test_geodesic_distances_are_those_of_generalised_eigenvalues() -> None:
    a, b = positive(3), positive(4)
    expected = [[np.sum(np.log(linalg.eigvalsh(y.numpy(), x.numpy())) ** 2) for y in b] for x in a]
    np.testing.assert_allclose(geodesic_distances(a, b).numpy(), expected, rtol=1e-10)


def test_geodesic_distances_do_not_change_under_a_common_change_of_axes() -> None:
    a, b = positive(3), positive(4)
    axes = torch.randn(4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        geodesic_distances(axes @ a @ axes.mT, axes @ b @ axes.mT), geodesic_distances(a, b)
    )
    assert geodesic_distances(a, a).diagonal().abs().max() < 1e-20


@pytest.mark.parametrize("gap", [1.0, 1e-3, 1e-9, 0.0])
def test_gradients_are_finite_differences_even_where_eigenvalues_meet(gap: float) -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    values = torch.tensor([2.0, 2.0 + gap, 5.0], dtype=torch.float64)
    matrix = (turn * values @ turn.mT)[None].requires_grad_()
    # A symmetric perturbation, since that is all that a covariance can have.
    assert gradcheck(lambda x: matrix_log((x + x.mT) / 2), matrix)
    other = positive(2, 3)
    assert gradcheck(lambda x: geodesic_distances((x + x.mT) / 2, other), matrix)
    assert gradcheck(lambda x: geodesic_distances(other, (x + x.mT) / 2), matrix)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("kind", ["usual", "flat", "one channel", "huge"])
def test_hard_maps_give_finite_losses_and_gradients_in_fp32(alignment: Alignment, kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 5, 8)
    if kind == "flat":
        x = torch.zeros_like(x)
    elif kind == "one channel":
        x[..., 1:] = x[..., :1]
    elif kind == "huge":
        x = 1e4 * x
    x.requires_grad_()
    heads = [SPDHead(8, 4, 6, alignment) for _ in range(2)]
    loss = info_nce(heads[0](x), heads[1](x), 0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert x.grad is not None
    assert all(torch.isfinite(g).all() for g in (x.grad, *(p.grad for h in heads for p in h.parameters())))


def test_rounding_below_zero_is_lifted() -> None:
    nearly = torch.diag(torch.tensor([1e3, 1.0, -5e-5]))[None]
    assert torch.linalg.eigvalsh(regularized(nearly)).min() > 0


@pytest.mark.parametrize("alignment", [*ALIGNMENTS, "none"])
def test_a_model_of_each_alignment_trains(alignment: Alignment) -> None:
    torch.manual_seed(0)
    small = {"dim": 6, "blocks": (1, 1, 1, 1), "refinement_blocks": 0, "heads": (1, 1, 2, 2)}
    model = MIRAGE(ModelConfig(**small, spd_channels=(3, 5), spd_embed_dim=7, alignment=alignment))
    clean = torch.rand(4, 3, 32, 32)
    weights = LossWeights(spd=0.0 if alignment == "none" else 1.0)
    loss = restoration_loss(model(clean + 0.1 * torch.randn_like(clean)), clean, weights)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert torch.isfinite(loss.total)
    assert bool(loss.spd > 0) is (alignment != "none")
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        assert model.eval()(clean).shallow is None


def test_weights_of_a_loss_without_heads_are_refused() -> None:
    model = MIRAGE(
        ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1), alignment="none")
    )
    clean = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="alignment is none"):
        restoration_loss(model(clean), clean, LossWeights())
