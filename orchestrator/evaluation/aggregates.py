"""Means over the images of a benchmark, each with its interval and everything that it depends on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.evaluation.bootstrap import mean_over_images
from orchestrator.evaluation.image_results import ImageResult
from orchestrator.evaluation.model_under_test import ModelIdentity
from orchestrator.paper.benchmarks import is_leaked, is_published
from shards.sample import SIGMA

METRICS = ("psnr", "ssim", "lpips", "input_psnr", "input_ssim")


@dataclass(frozen=True)
class AggregateScore:
    """Mean of one metric over the images of one benchmark under one degradation and protocol."""

    metric: str
    value: float
    low: float
    """Lower end of the 95 % bootstrap interval over images."""
    high: float
    n: int
    dataset: str
    digest: str
    """Digest of the dataset's manifest."""
    source: str
    """Published benchmark that the images belong to, else ""."""
    degradation: str
    subset: str
    """`all`, or `without-leak`: without the images whose scenes are in the published training list."""
    protocol: str
    noise: str
    """How noise was drawn; "" for degradations without noise."""
    model: str
    model_digest: str
    recipe: str
    weights: str
    pipeline: str = ""
    """Digest of the pipeline and seed that degraded the images; "" for packed pairs and noise levels."""


def aggregate(results: Iterable[ImageResult], identity: ModelIdentity, noise: str) -> list[AggregateScore]:
    """Return the score of every benchmark, subset and metric among `results`, in a fixed order."""
    groups: dict[tuple[str, ...], list[ImageResult]] = defaultdict(list)
    for one in results:
        groups[one.dataset, one.digest, one.degradation, one.protocol, one.pipeline].append(one)
    scores = []
    for (dataset, digest, degradation, protocol, pipeline), group in sorted(groups.items()):
        for source, subset, images in _subsets(sorted(group, key=lambda one: (one.source, one.image))):
            for metric in METRICS:
                values = {number: getattr(one, metric) for number, one in enumerate(images)}
                if None in values.values():  # LPIPS was not measured
                    continue
                interval = mean_over_images([values])
                scores.append(
                    AggregateScore(
                        metric=metric,
                        value=interval.mean,
                        low=interval.low,
                        high=interval.high,
                        n=len(images),
                        dataset=dataset,
                        digest=digest,
                        source=source,
                        degradation=degradation,
                        subset=subset,
                        protocol=protocol,
                        noise=noise if degradation in SIGMA else "",
                        model=identity.name,
                        model_digest=identity.digest,
                        recipe=identity.recipe,
                        weights=identity.weights,
                        pipeline=pipeline,
                    )
                )
    return scores


def _subsets(images: Sequence[ImageResult]) -> Iterator[tuple[str, str, Sequence[ImageResult]]]:
    """Yield (source, subset, images): all images, then each published benchmark, with and without leaked images.

    A dataset that is exactly one published benchmark is yielded under that source only.
    """
    sources = {one.source for one in images}
    published = sorted(filter(is_published, sources))
    if len(sources) > 1 or not published:
        yield "", "all", images
    for source in published:
        of_source = [one for one in images if one.source == source]
        yield source, "all", of_source
        unseen = [one for one in of_source if not is_leaked(one.source, one.image)]
        if 0 < len(unseen) < len(of_source):
            yield source, "without-leak", unseen
