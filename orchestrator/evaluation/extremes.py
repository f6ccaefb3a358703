"""The worst and the best images of each degradation, before, after and as they should be."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.evaluation.aggregates import extremes
from orchestrator.evaluation.chunks import Benchmarks
from orchestrator.evaluation.image_results import ImageResult
from orchestrator.evaluation.model_under_test import ModelUnderTest
from orchestrator.imaging.contact_sheet import image_grid
from orchestrator.imaging.convert import to_float, to_uint8
from shards.evaluation import EvalItem


def extremes_sheet(
    results: Sequence[ImageResult], benchmarks: Benchmarks, candidate: ModelUnderTest, count: int
) -> bytes:
    """Return a PNG with the `count` worst and best images of each dataset and degradation, restored anew."""
    cpu = torch.device("cpu")
    rows: list[list[NDArray[np.uint8]]] = []
    labels: list[str] = []
    captions: list[list[str]] = []
    for (_, degradation), (worst, best) in extremes(results, count).items():
        for word, chosen in (("worst", worst), ("best", best)):
            for one in chosen:
                item = find_image(benchmarks, one)
                restored = to_uint8(candidate(to_float(item.degraded, cpu)))
                rows.append([item.degraded, restored, item.clean])
                labels.append(f"{degradation}: {word}")
                captions.append(
                    [f"{one.input_psnr:.2f} dB", f"{one.psnr:.2f} dB / {one.ssim:.3f}", one.image]
                )
    page = image_grid(rows, ["degraded", "restored", "clean"], labels, captions)
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()


def find_image(benchmarks: Benchmarks, one: ImageResult) -> EvalItem:
    """Return the image that a result is of."""
    for unit in benchmarks.units:
        if benchmarks.datasets[unit.manifest].digests[0] != one.digest:
            continue
        if benchmarks.sets[unit.crop, unit.manifest].name(unit.index) == (one.degradation, one.image):
            return benchmarks.sets[unit.crop, unit.manifest][unit.index]
    raise AssertionError("a result is of an image of its benchmark")
