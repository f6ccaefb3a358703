"""The paper's statistics of features: how many directions they use, how alike their channels are, what embeddings tell.

Paper: Sec. 3 and 4, Figures 3 to 6 and B. A feature map of one image is a matrix X of n pixels by c channels. Where the
paper states a quantity by a percentage alone, the definition here is the one that gives its percentages
(docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirage.model import MIRAGE
from mirage.restore import reflect_to_multiple
from mirage.spd import covariance

SCALES = ("encoder1", "encoder2", "encoder3", "latent")
"""Stages of the encoder, from full resolution to an eighth of it."""


def cumulative_variance(x: Tensor) -> Tensor:
    """Share of the variance that the first k principal components hold, k = 1 to c; X (n, c) → (c,), float64.

    Channels are centred. A constant map has no variance: its first component holds all of it.
    """
    values = _eigenvalues(x)
    total = values.sum()
    return values.cumsum(0) / total if total > 0 else torch.ones_like(values)


def components_for(cumulative: Tensor, share: float = 0.9) -> int:
    """The smallest number of principal components that hold `share` of the variance."""
    return int((cumulative < share - 1e-12).sum()) + 1


def rank_ratio(x: Tensor, share: float = 0.9) -> float:
    """The paper's effective rank: components for 90 % of the variance, over the channels. X (n, c)."""
    return components_for(cumulative_variance(x), share) / x.shape[1]


def spectrum(x: Tensor) -> Tensor:
    """Singular values of the centred X (n, c) over the largest, (c,), float64."""
    values = _eigenvalues(x).sqrt()
    return values / values[0] if values[0] > 0 else values


def entropy_rank(x: Tensor) -> float:
    """Roy and Vetterli's effective rank of the centred X: exp of the entropy of its singular values' shares."""
    values = _eigenvalues(x).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def channel_similarity(x: Tensor) -> Tensor:
    """Cosines of the channels' maps, not centred; X (n, c) → (c, c), float64. A channel of zeros is like none."""
    unit = F.normalize(x.double(), dim=0)
    return unit.mT @ unit


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of all rows of `a` with all rows of `b`; (n, d), (m, d) → (n, m), float64."""
    return F.normalize(a.double(), dim=1) @ F.normalize(b.double(), dim=1).mT


@dataclass(frozen=True, slots=True)
class Contrast:
    """How a square matrix of similarities tells the matching pairs from the others."""

    diagonal: float
    """Mean of the matching pairs."""
    off_diagonal: float
    """Mean of the others."""
    ratio: float
    """Diagonal over off-diagonal: 1 tells nothing."""


def contrast(similarity: Tensor) -> Contrast:
    """Diagonal and off-diagonal means of (n, n) with n ≥ 2, and their ratio."""
    n = similarity.shape[0]
    if similarity.shape != (n, n) or n < 2:
        raise ValueError(
            f"similarity is {tuple(similarity.shape)}: it must be square, of two images or more."
        )
    diagonal = float(similarity.diagonal().mean())
    others = float((similarity.sum() - similarity.diagonal().sum()) / (n * (n - 1)))
    return Contrast(diagonal, others, diagonal / others if others else float("inf"))


def kernel_alignment(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two descriptions of the same images, (n, p) and (n, q), from 0 to 1.

    It needs no common embedding, so that depths of a model without contrastive learning can be compared.
    """
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    across = (a.mT @ b).square().sum()
    scale = (a.mT @ a).norm() * (b.mT @ b).norm()
    return float(across / scale) if scale > 0 else 0.0


# --- features of a model -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Features:
    """What one image leaves in a model: each map as (n, c), full precision."""

    stages: dict[str, Tensor]
    """Outputs of the encoder's stages, by the names of `SCALES`."""
    attention: dict[str, Tensor]
    """Outputs of the channel attention in the last block of each stage; none in a model without attention."""
    shallow: Tensor
    """Where the shallow descriptor looks: encoder 1 or the patch embedding, as the model says."""
    latent: Tensor
    """The reduced latent of 4 * dim channels, where the latent descriptor looks."""


def features(model: MIRAGE, degraded: Tensor) -> Features:
    """Features of one image (3, h, w), float in [0, 1], continued by reflection to multiples of 8."""
    kept: dict[str, Tensor] = {}
    modules: dict[str, nn.Module] = {name: getattr(model, name) for name in SCALES}
    for name in SCALES:
        attention = getattr(model, name)[-1].mixer.attention if len(getattr(model, name)) else None
        if attention is not None:
            modules[f"attention/{name}"] = attention
    tap = model.encoder1 if model.config.shallow_tap == "encoder1" else model.patch_embed
    modules |= {"shallow": tap, "reduced": model.reduce_latent}
    was_training = model.training
    model.eval()
    try:
        weight = model.output.weight
        batch = reflect_to_multiple(degraded[None].to(weight.device, weight.dtype), 8)
        with torch.no_grad(), _keeping(modules, kept):
            model(batch)
    finally:
        model.train(was_training)
    flat = {name: x.flatten(0, -2).float() for name, x in kept.items()}
    return Features(
        {name: flat[name] for name in SCALES},
        {name: flat[f"attention/{name}"] for name in SCALES if f"attention/{name}" in flat},
        flat["shallow"],
        flat["reduced"],
    )


@torch.no_grad()
def embeddings(model: MIRAGE, found: Features) -> tuple[Tensor, Tensor]:
    """What the model's heads make of shallow and latent features: two unit vectors (d,).

    ValueError for a model without heads (`alignment: none`) or whose heads make matrices (`geodesic`).
    """
    if model.config.alignment in ("none", "geodesic"):
        raise ValueError(f"a model of alignment {model.config.alignment} has no embeddings.")
    device = model.output.weight.device
    shallow = model.spd_shallow(found.shallow[None, :, None].to(device))
    latent = model.spd_latent(found.latent[None, :, None].to(device))
    return shallow[0], latent[0]


def mean_descriptor(x: Tensor) -> Tensor:
    """The Euclidean description of a map: the mean over its pixels; (n, c) → (c,)."""
    return x.mean(0)


def covariance_descriptor(x: Tensor) -> Tensor:
    """The second-order description of a map: its channel covariance as a vector; (n, c) → (c * c,)."""
    return covariance(x[None])[0].flatten()


def _eigenvalues(x: Tensor) -> Tensor:
    """Eigenvalues of the channel covariance of X (n, c), largest first, float64, not below 0."""
    x = x.double()
    x = x - x.mean(0)
    values: Tensor = torch.linalg.eigvalsh(x.mT @ x / max(x.shape[0] - 1, 1))
    return values.flip(0).clamp_min(0)


@contextmanager
def _keeping(modules: dict[str, nn.Module], kept: dict[str, Tensor]) -> Iterator[None]:
    """Keep what each module returns within the block."""

    def keeper(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            kept[name] = output.detach()

        return keep

    handles = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
