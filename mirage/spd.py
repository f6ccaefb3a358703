"""Second-order feature alignment: covariance descriptors and the loss that matches them.

Paper: Eq. 3-5 and Alg. B.  Axes: b images, n pixels, c channels, r reduced channels, d embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirage.collective import Share, gather_rows
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


class SPDHead(nn.Module):
    """Embed a feature map as a unit vector that describes how its channels vary together."""

    def __init__(self, channels: int, reduced: int, embed_dim: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, reduced)
        self.project = nn.Linear(reduced**2, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c) → (b, d), unit length."""
        with torch.autocast(x.device.type, enabled=False):
            reduced = self.reduce(at_least_fp32(x).flatten(1, 2))  # (b, n, r)
            return F.normalize(self.project(covariance(reduced).flatten(1)), dim=1)


def info_nce(shallow: Tensor, latent: Tensor, temperature: float, share: Share | None = None) -> Tensor:
    """Match each image's two depths against the whole global micro-batch; chance level is log(share.total).

    shallow, latent (b, d): unit vectors of this process's images. Returns this process's share of the mean
    over all images: the sum of its rows' losses over `share.total`; over all processes they add up to it.
    Without a share these images are the whole batch, whatever other processes hold, as in the release.
    """
    with torch.autocast(shallow.device.type, enabled=False):
        everyone = latent if share is None else gather_rows(latent, share)  # (total, d)
        logits = shallow @ everyone.mT / temperature  # (b, total)
        start = 0 if share is None else share.start
        matches = torch.arange(start, start + shallow.shape[0], device=shallow.device)
        return F.cross_entropy(logits, matches, reduction="sum") / everyone.shape[0]
