"""Feature alignment: descriptors of two depths of the network and the contrastive loss between them.

The paper's descriptor is the covariance as a plain vector, Eq. 3-5 and Alg. B. Two others use the geometry of symmetric
positive definite (SPD) matrices (Arsigny et al. 2006; Pennec et al. 2006).

Axes: b images, n pixels, c channels, r reduced channels, d embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mirage.collective import BatchShare, gather_rows
from mirage.config import Alignment
from mirage.kernels.reference import at_least_fp32


def covariance(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the channel covariance over pixels, (b, n, c) → (b, c, c), plus `eps * I` to make it positive definite.

    In fp32 or better: in bf16 the small eigenvalues round to zero and the matrix is no longer SPD.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_fp32(x)
        x = x - x.mean(dim=1, keepdim=True)
        cov = x.mT @ x / (x.shape[1] - 1)  # (b, c, c), unbiased
        return cov + eps * torch.eye(x.shape[2], device=x.device, dtype=x.dtype)


class _MatrixLog(torch.autograd.Function):
    """The logarithm of symmetric positive definite matrices (..., r, r).

    The gradient is that of Daleckii and Krein, with divided differences that stay exact for equal eigenvalues. Autograd
    would use the gradient of the eigenvectors, which is infinite there.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """Compute the logarithm through the eigenvalues."""
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        out: Tensor = (vectors * values.log()[..., None, :]) @ vectors.mT
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return `V (K * V' G V) V'`, with K_ij the slope of the logarithm between eigenvalues i and j."""
        values, vectors = ctx.saved_tensors
        ratio = values[..., :, None] / values[..., None, :] - 1
        series = 1 - ratio / 2 + ratio.square() / 3
        near = ratio.abs() < 1e-4
        slope = torch.where(near, series, ratio.log1p() / torch.where(near, 1, ratio)) / values[..., None, :]
        inner = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        out: Tensor = vectors @ (slope * inner) @ vectors.mT
        return out


def matrix_log(matrix: Tensor) -> Tensor:
    """Return the logarithm of symmetric positive definite matrices (..., r, r)."""
    out: Tensor = _MatrixLog.apply(matrix)  # type: ignore[no-untyped-call]
    return out


def geodesic_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared affine-invariant distances, (n, r, r) and (m, r, r) positive definite → (n, m).

    `||log(A^-1/2 B A^-1/2)||^2`, the sum of squared logarithms of the eigenvalues of A^-1 B. Only eigenvalues are used,
    whose gradient is finite even if they are equal.
    """
    inverse = torch.linalg.inv(torch.linalg.cholesky(a))  # (n, r, r), L^-1 with A = L L'
    between = inverse[:, None] @ b[None] @ inverse.mT[:, None]  # (n, m, r, r)
    values: Tensor = torch.linalg.eigvalsh((between + between.mT) / 2)
    return values.clamp_min(torch.finfo(values.dtype).tiny).log().square().sum(-1)


def regularized(cov: Tensor) -> Tensor:
    """Return covariances (b, r, r) in float64, with a millionth of their mean variance added to the diagonal.

    fp32 rounding can make the smallest eigenvalues negative. The matrices are small, so that float64 costs nothing.
    """
    cov = cov.double()
    mean = cov.diagonal(dim1=1, dim2=2).mean(1).detach()
    return cov + 1e-6 * mean[:, None, None] * torch.eye(cov.shape[1], device=cov.device, dtype=cov.dtype)


class SPDHead(nn.Module):
    """The head that turns a feature map into the descriptor of an `alignment`.

    `spd`: the covariance, embedded as a unit vector; `log_euclidean`: the logarithm of the covariance, embedded;
    `euclidean`: the mean over pixels, embedded; `geodesic`: the covariance itself.
    """

    def __init__(self, channels: int, reduced: int, embed_dim: int, alignment: Alignment = "spd") -> None:
        super().__init__()
        self.alignment = alignment
        self.reduce = nn.Linear(channels, reduced)
        if alignment != "geodesic":
            self.project = nn.Linear(reduced if alignment == "euclidean" else reduced**2, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Describe x (b, h, w, c) by unit vectors (b, d), or by matrices (b, r, r) in float64 for `geodesic`."""
        with torch.autocast(x.device.type, enabled=False):
            reduced = self.reduce(at_least_fp32(x).flatten(1, 2))  # (b, n, r)
            if self.alignment == "geodesic":
                return regularized(covariance(reduced))
            if self.alignment == "euclidean":
                descriptor = reduced.mean(1)
            elif self.alignment == "log_euclidean":
                descriptor = matrix_log(regularized(covariance(reduced))).to(reduced.dtype).flatten(1)
            else:
                descriptor = covariance(reduced).flatten(1)
            return F.normalize(self.project(descriptor), dim=1)


def info_nce(shallow: Tensor, latent: Tensor, temperature: float, share: BatchShare | None = None) -> Tensor:
    """Return the InfoNCE loss between shallow and latent descriptors; at chance level it is log(share.total).

    shallow, latent: descriptors of this process's images: unit vectors (b, d), compared by their cosine, or covariances
    (b, r, r), compared by minus their squared geodesic distance over r. Each shallow descriptor is matched against the
    latent descriptors of the whole global micro-batch.
    The result is this process's share of the mean over all images: the sum of its rows' losses over `share.total`.
    Without a share these images are the whole batch, whatever other processes hold, as in the release.
    """
    with torch.autocast(shallow.device.type, enabled=False):
        all_latent = latent
        if share is not None:
            all_latent = gather_rows(latent.flatten(1), share).view(-1, *latent.shape[1:])
        if shallow.dim() == 3:
            similarity = -geodesic_distances(shallow, all_latent) / shallow.shape[1]
        else:
            similarity = shallow @ all_latent.mT
        logits = similarity / temperature  # (b, total)
        start = 0 if share is None else share.start
        matches = torch.arange(start, start + shallow.shape[0], device=shallow.device)
        return F.cross_entropy(logits, matches, reduction="sum") / all_latent.shape[0]
