"""95 % percentile bootstrap over images, with a fixed seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 10_000
_DRAWS_PER_BATCH = 100
"""Bounds the memory of a benchmark with many images."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the interval as a difference in dB."""
        return f"{self.mean:+.3f} dB [{self.low:+.3f}, {self.high:+.3f}]"


def mean_over_images(groups: Sequence[Mapping[Any, float]]) -> Interval:
    """Return the unweighted mean of the groups' means with its interval; a group maps images to values.

    Images are resampled, not values: an image in several groups is drawn for all of them or for none. A draw without
    any image of a group uses that group's mean. The interval of values that are not all finite is their range.
    """
    images = sorted({image for group in groups for image in group})
    present = np.array([[image in group for image in images] for group in groups])
    values = np.array([[group.get(image, 0.0) for image in images] for group in groups])
    means = np.array([row[there].mean() for row, there in zip(values, present, strict=True)])
    if not np.isfinite(values).all():
        return Interval(float(means.mean()), float(values[present].min()), float(values[present].max()))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS // _DRAWS_PER_BATCH):
        picks = rng.integers(0, len(images), (_DRAWS_PER_BATCH, len(images)))
        sums, counts = values[:, picks].sum(2), present[:, picks].sum(2)  # (groups, draws)
        draws.append(np.where(counts == 0, means[:, None], sums / np.maximum(counts, 1)).mean(0))
    low, high = np.percentile(np.concatenate(draws), [2.5, 97.5])
    return Interval(float(means.mean()), float(low), float(high))
