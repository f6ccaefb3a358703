"""The paper's statistics of features: effective rank, similarity of channels, contrast of embeddings.

Paper: Sec. 3 and 4, Figures 3 to 6 and B. A feature map of one image is a matrix X of n pixels by c channels. Where the
paper gives only percentages, the definition here is the one that reproduces them (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirage.inference import reflect_to_multiple
from mirage.model import MIRAGE
from mirage.spd import covariance

SCALES = ("encoder1", "encoder2", "encoder3", "latent")
"""The stages of the encoder, from full resolution to an eighth of it."""


def cumulative_variance(x: Tensor) -> Tensor:
    """Return the explained variance ratio of the first k principal components, k = 1 to c; X (n, c) → (c,), float64.

    Channels are centred. For a constant map, which has no variance, all ratios are 1.
    """
    values = _eigenvalues(x)
    total = values.sum()
    return values.cumsum(0) / total if total > 0 else torch.ones_like(values)


def components_for(cumulative: Tensor, share: float = 0.9) -> int:
    """Return the smallest number of principal components that explain `share` of the variance."""
    return int((cumulative < share - 1e-12).sum()) + 1


def rank_ratio(x: Tensor, share: float = 0.9) -> float:
    """Return the paper's effective rank of X (n, c): components for 90 % of the variance, over the channels."""
    return components_for(cumulative_variance(x), share) / x.shape[1]


def spectrum(x: Tensor) -> Tensor:
    """Return the singular values of the centred X (n, c) over the largest, (c,), float64."""
    values = _eigenvalues(x).sqrt()
    return values / values[0] if values[0] > 0 else values


def entropy_rank(x: Tensor) -> float:
    """Return Roy and Vetterli's effective rank of the centred X: exp(entropy of the normalised singular values)."""
    values = _eigenvalues(x).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def channel_similarity(x: Tensor) -> Tensor:
    """Return cosine similarities of the channels, not centred; X (n, c) → (c, c), float64; 0 for a zero channel."""
    unit = F.normalize(x.double(), dim=0)
    return unit.mT @ unit


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return cosine similarities of all rows of `a` with all rows of `b`; (n, d), (m, d) → (n, m), float64."""
    return F.normalize(a.double(), dim=1) @ F.normalize(b.double(), dim=1).mT


@dataclass(frozen=True, slots=True)
class Contrast:
    """Mean similarities of matching and of other pairs."""

    diagonal: float
    """Mean over the matching pairs."""
    off_diagonal: float
    """Mean over the other pairs."""
    ratio: float
    """Diagonal over off-diagonal; 1 means that pairs cannot be told apart."""


def contrast(similarity: Tensor) -> Contrast:
    """Return diagonal and off-diagonal means of a similarity matrix (n, n), n ≥ 2, and their ratio."""
    n = similarity.shape[0]
    if similarity.shape != (n, n) or n < 2:
        raise ValueError(f"similarity is {tuple(similarity.shape)}: must be square, for at least two images.")
    diagonal = float(similarity.diagonal().mean())
    others = float((similarity.sum() - similarity.diagonal().sum()) / (n * (n - 1)))
    return Contrast(diagonal, others, diagonal / others if others else float("inf"))


def kernel_alignment(a: Tensor, b: Tensor) -> float:
    """Return the linear CKA of two representations of the same images, (n, p) and (n, q), from 0 to 1.

    It needs no common embedding: it also compares depths of a model without contrastive learning.
    """
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    cross = (a.mT @ b).square().sum()
    scale = (a.mT @ a).norm() * (b.mT @ b).norm()
    return float(cross / scale) if scale > 0 else 0.0


# --- features of a model -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Features:
    """Features of one image in a model, each map as (n, c) in fp32."""

    stages: dict[str, Tensor]
    """Outputs of the encoder stages, by the names of `SCALES`."""
    attention: dict[str, Tensor]
    """Outputs of the channel attention in the last block of each stage; empty for a model without attention."""
    shallow: Tensor
    """Input of the shallow descriptor: the output of encoder 1 or of the patch embedding (`shallow_tap`)."""
    latent: Tensor
    """Input of the latent descriptor: the reduced latent of 4 * dim channels."""


def features(model: MIRAGE, degraded: Tensor) -> Features:
    """Return the features of one image (3, h, w), float in [0, 1], padded by reflection to multiples of 8."""
    recorded: dict[str, Tensor] = {}
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
        with torch.no_grad(), _record_outputs(modules, recorded):
            model(batch)
    finally:
        model.train(was_training)
    flat = {name: x.flatten(0, -2).float() for name, x in recorded.items()}
    return Features(
        {name: flat[name] for name in SCALES},
        {name: flat[f"attention/{name}"] for name in SCALES if f"attention/{name}" in flat},
        flat["shallow"],
        flat["reduced"],
    )


@torch.no_grad()
def embeddings(model: MIRAGE, image_features: Features) -> tuple[Tensor, Tensor]:
    """Return the embeddings of shallow and latent features: two unit vectors (d,).

    Raises ValueError for a model without heads (`alignment: none`) or with matrix descriptors (`geodesic`).
    """
    if model.config.alignment in ("none", "geodesic"):
        raise ValueError(f"a model with alignment {model.config.alignment} has no embeddings.")
    device = model.output.weight.device
    shallow = model.spd_shallow(image_features.shallow[None, :, None].to(device))
    latent = model.spd_latent(image_features.latent[None, :, None].to(device))
    return shallow[0], latent[0]


def mean_descriptor(x: Tensor) -> Tensor:
    """Return the Euclidean descriptor of a map: the mean over its pixels; (n, c) → (c,)."""
    return x.mean(0)


def covariance_descriptor(x: Tensor) -> Tensor:
    """Return the second-order descriptor of a map: its channel covariance as a vector; (n, c) → (c * c,)."""
    return covariance(x[None])[0].flatten()


def _eigenvalues(x: Tensor) -> Tensor:
    """Return the eigenvalues of the channel covariance of X (n, c), largest first, float64, at least 0."""
    x = x.double()
    x = x - x.mean(0)
    values: Tensor = torch.linalg.eigvalsh(x.mT @ x / max(x.shape[0] - 1, 1))
    return values.flip(0).clamp_min(0)


@contextmanager
def _record_outputs(modules: dict[str, nn.Module], recorded: dict[str, Tensor]) -> Iterator[None]:
    """Record the output of each module within the block."""

    def recorder(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def record(module: nn.Module, inputs: object, output: Tensor) -> None:
            recorded[name] = output.detach()

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
