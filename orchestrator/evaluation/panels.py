"""Figures like the paper's 1 and C to G: degraded, each model, clean, with a magnified inset in the corner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mirage.metrics import measure
from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.data import datasets
from orchestrator.errors import EvaluationError
from orchestrator.evaluation.chunks import Benchmarks
from orchestrator.evaluation.model_under_test import ModelUnderTest, build_model, fetch_weights, identify
from orchestrator.imaging.contact_sheet import image_grid
from orchestrator.imaging.convert import encode_png, to_float, to_uint8
from orchestrator.outputs import write_output
from shards.evaluation import EvalItem

Pixels = NDArray[np.uint8]
"""An RGB image (h, w, 3)."""

_INSET_SIDE = 0.18
"""Side of the magnified square over the shorter side of the image."""
_MAGNIFICATION = 2.5
_FRAME_COLOUR = (255, 209, 0)
_STRIDE = 8
"""Distance of the squares among which the inset is chosen [px]."""


class Inset(NamedTuple):
    """The square that is magnified, in pixels."""

    top: int
    left: int
    side: int


def draw_panels(
    jobs: Sequence[EvaluateJob], degradations: Sequence[str], images: Sequence[str], count: int, out: Path
) -> list[str]:
    """Write a PNG with a row per image and a column per job's model; return the labels of its rows.

    The images are those of the first job: the given ones, else the first `count` of each degradation. No degradations
    means all of them. The caption of each image is its PSNR under the first job's first protocol. Raises
    EvaluationError.
    """
    first = jobs[0]
    items = _choose(Benchmarks(first, datasets.open_benchmarks(first)), degradations, images, count)
    names, models = [], []
    for job in jobs:
        weights = fetch_weights(job.model, job.track.uri)
        names.append(identify(job.model, weights).name)
        models.append(build_model(job.model, weights, torch.device("cpu"), job.evaluate.precision))
    rows = [_row(item, models, first.evaluate.protocols[0]) for item in items]
    labels = [f"{item.degradation}\n{item.id}" for item in items]
    drawn, captions = zip(*rows, strict=True)
    page = image_grid(drawn, ["degraded", *names, "clean"], labels, captions)
    write_output(out, encode_png(page))
    return [label.replace("\n", " ") for label in labels]


def choose_inset(clean: Pixels, degraded: Pixels) -> Inset:
    """Return the square with the largest product of clean structure and change by the degradation."""
    side = max(16, int(min(clean.shape[:2]) * _INSET_SIDE) // _STRIDE * _STRIDE)
    clean_grey, degraded_grey = clean.astype(np.float64).mean(2), degraded.astype(np.float64).mean(2)
    structure = _window_sums(np.hypot(*np.gradient(clean_grey)), side)
    change = _window_sums(np.abs(clean_grey - degraded_grey), side)
    score = structure * (change + 1e-9)
    # The magnified inset covers the lower right corner, so the square must lie outside of it.
    covered = int(side * _MAGNIFICATION) + side
    height, width = clean_grey.shape
    rows, columns = (np.arange(n) * _STRIDE for n in score.shape)
    score[np.ix_(rows > height - covered, columns > width - covered)] = -1
    top, left = np.unravel_index(int(score.argmax()), score.shape)
    return Inset(int(top) * _STRIDE, int(left) * _STRIDE, side)


def with_inset(image: Pixels, inset: Inset) -> Pixels:
    """Return the image with the square framed, and magnified in the lower right corner."""
    picture = Image.fromarray(image)
    box = (inset.left, inset.top, inset.left + inset.side, inset.top + inset.side)
    size = int(inset.side * _MAGNIFICATION)
    magnified = picture.crop(box).resize((size, size), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    line = max(1, min(picture.size) // 160)
    draw.rectangle(box, outline=_FRAME_COLOUR, width=line)
    corner = (picture.width - size, picture.height - size)
    picture.paste(magnified, corner)
    draw.rectangle((*corner, picture.width - 1, picture.height - 1), outline=_FRAME_COLOUR, width=line)
    return np.asarray(picture)


def _choose(
    benchmarks: Benchmarks, degradations: Sequence[str], images: Sequence[str], count: int
) -> list[EvalItem]:
    crop = next(iter(benchmarks.crops))
    taken: Counter[str] = Counter()
    chosen, known = [], set()
    for item in benchmarks.items:
        available = benchmarks.sets[item.crop, item.dataset]
        degradation, image = available.name(item.index)
        known.add(image)
        wanted = image in images if images else taken[degradation] < count
        if item.crop == crop and wanted and (not degradations or degradation in degradations):
            taken[degradation] += 1
            chosen.append(available[item.index])
    if not chosen:
        raise EvaluationError(
            f"no image {', '.join(images) or 'at all'} under {', '.join(degradations) or 'any degradation'}. "
            f"There are: {', '.join(sorted(known)[:20])}; {', '.join(sorted({d for _, d in benchmarks.counts()}))}."
        )
    return chosen


def _row(item: EvalItem, models: Sequence[ModelUnderTest], protocol: str) -> tuple[list[Pixels], list[str]]:
    """Return the images of one row and their captions."""
    cpu = torch.device("cpu")
    degraded, clean = to_float(item.degraded, cpu), to_float(item.clean, cpu)
    results = [degraded, *(model(degraded) for model in models)]
    captions = [f"{float(measure(image, clean, protocol)['psnr']):.2f} dB" for image in results]
    inset = choose_inset(item.clean, item.degraded)
    images = [*(to_uint8(image) for image in results), item.clean]
    return [with_inset(image, inset) for image in images], [*captions, ""]


def _window_sums(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return the sums over squares of `side`, every `_STRIDE` pixels."""
    table = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums: NDArray[np.float64] = (
        table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    )
    return sums[::_STRIDE, ::_STRIDE].copy()
