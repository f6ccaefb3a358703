"""The worst and best images of each degradation: degraded, restored and clean."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.evaluation.chunks import Benchmarks
from orchestrator.evaluation.image_results import ImageResult
from orchestrator.evaluation.model_under_test import ModelUnderTest
from orchestrator.imaging.contact_sheet import image_grid
from orchestrator.imaging.convert import encode_png, to_float, to_uint8
from shards.evaluation import EvalItem


def extremes(results: Sequence[ImageResult], count: int) -> Iterator[tuple[str, ImageResult]]:
    """Yield ("worst" or "best", result): the `count` lowest and highest PSNR of each dataset and degradation.

    Only results of the first protocol count, and no image is yielded twice.
    """
    groups: dict[tuple[str, str], list[ImageResult]] = defaultdict(list)
    for one in results:
        if one.protocol == results[0].protocol:
            groups[one.digest, one.degradation].append(one)
    for _, group in sorted(groups.items()):
        group.sort(key=lambda one: (-math.inf if math.isnan(one.psnr) else one.psnr, one.image))
        yield from (("worst", one) for one in group[:count])
        yield from (("best", one) for one in group[: count - 1 : -1][:count])


def extremes_sheet(
    results: Sequence[ImageResult], benchmarks: Benchmarks, model: ModelUnderTest, count: int
) -> bytes:
    """Return a PNG of the `count` worst and best images of each dataset and degradation, restored again."""
    cpu = torch.device("cpu")
    rows: list[list[NDArray[np.uint8]]] = []
    labels, captions = [], []
    for rank, one in extremes(results, count):
        item = find_image(benchmarks, one)
        rows.append([item.degraded, to_uint8(model(to_float(item.degraded, cpu))), item.clean])
        labels.append(f"{one.degradation}: {rank}")
        captions.append([f"{one.input_psnr:.2f} dB", f"{one.psnr:.2f} dB / {one.ssim:.3f}", one.image])
    return encode_png(image_grid(rows, ["degraded", "restored", "clean"], labels, captions))


def find_image(benchmarks: Benchmarks, result: ImageResult) -> EvalItem:
    """Return the image that a result was measured on."""
    for item in benchmarks.items:
        images = benchmarks.sets[item.crop, item.dataset]
        same_data = benchmarks.datasets[item.dataset].digests[0] == result.digest
        if same_data and images.name(item.index) == (result.degradation, result.image):
            return images[item.index]
    raise AssertionError("every result is of an image of its benchmarks")
