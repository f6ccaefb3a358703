"""Data classes for the results of a feature analysis."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

AS_GIVEN = "as given"
"""Name of the degradation of images that are analysed without one."""


@dataclass(frozen=True)
class ScaleStatistics:
    """Statistics of one feature map of the model, averaged over the images."""

    name: str
    channels: int
    components_90: float
    """Principal components for 90 % of the variance."""
    rank_ratio: float
    """`components_90` over the channels: the paper's percentages."""
    entropy_rank: float
    cumulative_variance: tuple[float, ...]
    spectrum: tuple[float, ...]


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of one model on images of one degradation."""

    model: str
    degradation: str
    images: int
    scales: tuple[ScaleStatistics, ...]
    """Encoder stages and the reduced latent: Figures 4 and B."""
    attention: tuple[ScaleStatistics, ...]
    """Outputs of channel attention per stage: Figure 3."""
    similarity: dict[str, Tensor]
    """Stage → cosines between channels, averaged over the images."""
    matrices: dict[str, Tensor]
    """Images by images. `shallow_latent`: cosines of the two heads' embeddings (Figure 5); `euclidean` and `spd`:
    cosines of the latents' means and covariances (Figure 6)."""
    kernel_alignment: float | None
    """CKA of the shallow and latent covariances, as unit vectors, over the images; None for a single image."""
