"""Feature alignment: descriptors of two depths of the network and the contrastive loss that matches them.

The paper's descriptor is the covariance as a plain vector, Eq. 3-5 and Alg. B. Two others respect that covariances
are positive definite matrices, which form a curved space (Arsigny et al. 2006; Pennec et al. 2006).

Axes: b images, n pixels, c channels, r reduced channels, d embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mirage.collective import Share, gather_rows
from mirage.config import Alignment
from mirage.kernels.reference import at_least_fp32


def covariance(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Channel covariance over pixels, (b, n, c) → (b, c, c), lifted by `eps * I` to be positive definite.

    Always fp32 or better: in bf16 the small eigenvalues round to zero and the matrix stops being SPD.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_fp32(x)
        x = x - x.mean(dim=1, keepdim=True)
        cov = x.mT @ x / (x.shape[1] - 1)  # (b, c, c), unbiased
        return cov + eps * torch.eye(x.shape[2], device=x.device, dtype=x.dtype)


class _MatrixLog(torch.autograd.Function):
    """Logarithm of symmetric positive definite matrices (..., r, r), in their type.

    The gradient is that of Daleckii and Krein, with divided differences that stay exact where eigenvalues meet; the
    gradient of eigenvectors, which autograd would take, is infinite there.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """Through the eigenvalues."""
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        out: Tensor = (vectors * values.log()[..., None, :]) @ vectors.mT
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """V (K * V' G V) V', with K_ij the slope of the logarithm between eigenvalues i and j."""
        values, vectors = ctx.saved_tensors
        apart = values[..., :, None] / values[..., None, :] - 1
        series = 1 - apart / 2 + apart.square() / 3
        near = apart.abs() < 1e-4
        slope = torch.where(near, series, apart.log1p() / torch.where(near, 1, apart)) / values[..., None, :]
        inner = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        out: Tensor = vectors @ (slope * inner) @ vectors.mT
        return out


def matrix_log(matrix: Tensor) -> Tensor:
    """Logarithm of symmetric positive definite matrices (..., r, r)."""
    out: Tensor = _MatrixLog.apply(matrix)  # type: ignore[no-untyped-call]
    return out


def geodesic_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared affine-invariant distances, (n, r, r) and (m, r, r) positive definite → (n, m).

    `||log(A^-1/2 B A^-1/2)||^2`, the sum of squared logarithms of the eigenvalues of A^-1 B. Only eigenvalues enter,
    whose gradient is finite even where they meet.
    """
    inverse = torch.linalg.inv(torch.linalg.cholesky(a))  # (n, r, r), L^-1 with A = L L'
    between = inverse[:, None] @ b[None] @ inverse.mT[:, None]  # (n, m, r, r)
    values: Tensor = torch.linalg.eigvalsh((between + between.mT) / 2)
    return values.clamp_min(torch.finfo(values.dtype).tiny).log().square().sum(-1)


def lifted(cov: Tensor) -> Tensor:
    """Covariances (b, r, r) in float64, lifted by a millionth of their mean variance.

    fp32 rounds a covariance by a ten-millionth of its size, which can make the smallest eigenvalues negative. The
    matrices are small, so that float64 costs nothing.
    """
    cov = cov.double()
    mean = cov.diagonal(dim1=1, dim2=2).mean(1).detach()
    return cov + 1e-6 * mean[:, None, None] * torch.eye(cov.shape[1], device=cov.device, dtype=cov.dtype)


class SPDHead(nn.Module):
    """Embed a feature map as what `alignment` compares.

    `spd`: its covariance as a unit vector; `log_euclidean`: the covariance's logarithm as one; `euclidean`: the mean
    over its pixels as one; `geodesic`: the covariance itself.
    """

    def __init__(self, channels: int, reduced: int, embed_dim: int, alignment: Alignment = "spd") -> None:
        super().__init__()
        self.alignment = alignment
        self.reduce = nn.Linear(channels, reduced)
        if alignment != "geodesic":
            self.project = nn.Linear(reduced if alignment == "euclidean" else reduced**2, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c) → unit vectors (b, d), or matrices (b, r, r) in float64 for `geodesic`."""
        with torch.autocast(x.device.type, enabled=False):
            reduced = self.reduce(at_least_fp32(x).flatten(1, 2))  # (b, n, r)
            if self.alignment == "geodesic":
                return lifted(covariance(reduced))
            if self.alignment == "euclidean":
                described = reduced.mean(1)
            elif self.alignment == "log_euclidean":
                described = matrix_log(lifted(covariance(reduced))).to(reduced.dtype).flatten(1)
            else:
                described = covariance(reduced).flatten(1)
            return F.normalize(self.project(described), dim=1)


def info_nce(shallow: Tensor, latent: Tensor, temperature: float, share: Share | None = None) -> Tensor:
    """Match each image's two depths against the whole global micro-batch; chance level is log(share.total).

    shallow, latent: what the heads made of this process's images, unit vectors (b, d) compared by their cosine or
    covariances (b, r, r) compared by minus their squared geodesic distance over r.
    Returns this process's share of the mean over all images: the sum of its rows' losses over `share.total`; over
    all processes they add up to it. Without a share these images are the whole batch, whatever other processes
    hold, as in the release.
    """
    with torch.autocast(shallow.device.type, enabled=False):
        everyone = latent
        if share is not None:
            everyone = gather_rows(latent.flatten(1), share).view(-1, *latent.shape[1:])
        if shallow.dim() == 3:
            alike = -geodesic_distances(shallow, everyone) / shallow.shape[1]
        else:
            alike = shallow @ everyone.mT
        logits = alike / temperature  # (b, total)
        start = 0 if share is None else share.start
        matches = torch.arange(start, start + shallow.shape[0], device=shallow.device)
        return F.cross_entropy(logits, matches, reduction="sum") / everyone.shape[0]
