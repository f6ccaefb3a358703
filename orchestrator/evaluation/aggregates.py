"""Numbers that can stand alone: each with its interval, its n, and all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.evaluation.bootstrap import DRAWS
from orchestrator.evaluation.image_results import ImageResult
from orchestrator.evaluation.model_under_test import ModelIdentity
from orchestrator.paper.benchmarks import COLUMNS, _plain, is_published
from shards.sources.leaks import OTS_SCENES_OF_SOTS

_AT_ONCE = 100
METRICS = ("psnr", "ssim", "lpips", "input_psnr", "input_ssim")


@dataclass(frozen=True)
class AggregateScore:
    """The mean of one metric over the images of one benchmark under one degradation."""

    metric: str
    value: float
    low: float
    """With `high` the 95 % percentile bootstrap interval over images."""
    high: float
    n: int
    dataset: str
    digest: str
    """Of the dataset's manifest."""
    source: str
    """Published benchmark that the images are; "" for any others."""
    degradation: str
    subset: str
    """`all`, or `without-leak`: without the images whose scenes are in the published training list."""
    protocol: str
    noise: str
    """How noise was drawn; "" where none was."""
    model: str
    model_digest: str
    recipe: str
    weights: str


def aggregate(results: Iterable[ImageResult], identity: ModelIdentity, noise: str) -> list[AggregateScore]:
    """Return every figure of these images, in a fixed order."""
    groups: dict[tuple[str, ...], list[ImageResult]] = {}
    for one in results:
        key = (one.dataset, one.digest, one.degradation, one.protocol)
        groups.setdefault(key, []).append(one)
    made: list[AggregateScore] = []
    for (dataset, digest, degradation, protocol), group in sorted(groups.items()):
        group.sort(key=lambda one: (one.source, one.image))
        for (source, subset), chosen in _subsets(group).items():
            for metric in METRICS:
                values = [getattr(one, metric) for one in chosen]
                if None in values:
                    continue
                value, low, high = mean_and_interval(np.array(values))
                made.append(
                    AggregateScore(
                        *(
                            metric,
                            value,
                            low,
                            high,
                            len(values),
                            dataset,
                            digest,
                            source,
                            degradation,
                            subset,
                        ),
                        protocol,
                        noise if degradation.startswith("noise") else "",
                        *(identity.name, identity.digest, identity.recipe, identity.weights),
                    )
                )
    return made


def _subsets(group: Sequence[ImageResult]) -> dict[tuple[str, str], list[ImageResult]]:
    """Return the images by (source, subset): all of them, each published benchmark among others, and without leaks.

    The source of a set that is no published benchmark is "": photographs of any origin are a benchmark of our own.
    """
    sources = {one.source for one in group}
    published = sorted(filter(is_published, sources))
    found: dict[tuple[str, str], list[ImageResult]] = {}
    if sources != set(published[:1]):
        found["", "all"] = list(group)
    for source in published:
        of_source = [one for one in group if one.source == source]
        found[source, "all"] = of_source
        unseen = [one for one in of_source if not is_leaked(one.source, one.image)]
        if 0 < len(unseen) < len(of_source):
            found[source, "without-leak"] = unseen
    return found


def mean_and_interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean and its 95 % percentile bootstrap interval over the values."""
    if not np.isfinite(
        values
    ).all():  # equal images: the mean is infinite, and so is every draw with one of them
        return float(values.mean()), float(values.min()), float(values.max())
    rng = np.random.default_rng(0)
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (_AT_ONCE, len(values)))].mean(1)
            for _ in range(DRAWS // _AT_ONCE)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def extremes(
    results: Sequence[ImageResult], count: int, better: Callable[[ImageResult], float] = lambda r: r.psnr
) -> dict[tuple[str, str], tuple[list[ImageResult], list[ImageResult]]]:
    """Return the `count` worst and best images of each (dataset digest, degradation), under the first protocol."""
    groups: dict[tuple[str, str], list[ImageResult]] = {}
    for one in results:
        if one.protocol == results[0].protocol:
            groups.setdefault((one.digest, one.degradation), []).append(one)
    found = {}
    for key, group in sorted(groups.items()):
        group.sort(key=lambda one: (better(one), one.image))
        best = [one for one in reversed(group[count:])][:count]
        found[key] = (group[:count], best)
    return found


def is_leaked(source: str, image: str) -> bool:
    """Return whether an image of SOTS outdoor shows a scene of the published training list, by its id."""
    scene = image.rpartition("/")[2].partition("_")[0]
    return _plain(source) in COLUMNS["sots_outdoor"].sources and scene in OTS_SCENES_OF_SOTS
