"""Panels as in the paper's Figures 1 and C to G: degraded, each model, clean, with a detail magnified in the corner."""

from __future__ import annotations

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
from orchestrator.imaging.convert import to_float, to_uint8
from shards.evaluation import EvalItem

Picture = NDArray[np.uint8]

_DETAIL = 0.18
"""Side of the detail over the shorter side of the picture."""
_MAGNIFY = 2.5
_FRAME = (255, 209, 0)
_STEP = 8


class Detail(NamedTuple):
    """The square that is magnified, in pixels."""

    top: int
    left: int
    side: int


def draw_panels(
    jobs: Sequence[EvaluateJob], degradations: Sequence[str], images: Sequence[str], count: int, out: Path
) -> list[str]:
    """Write a page with a row per image and a column per job's model; return the labels of its rows.

    Images are those of the first job: the named ones, else the first `count` of each degradation; none named means all
    degradations. PSNR stands under each picture, under the first job's first protocol. Raises EvaluationError.
    """
    first = jobs[0]
    benchmarks = Benchmarks(first, datasets.open_benchmarks(first))
    chosen = _choose(benchmarks, degradations, images, count)
    candidates = []
    for job in jobs:
        weights = fetch_weights(job.model, job.track.uri)
        name = identify(job.model, weights).name
        candidates.append(
            (name, build_model(job.model, weights, torch.device("cpu"), job.evaluate.precision))
        )
    protocol = first.evaluate.protocols[0]
    rows, captions = [], []
    for item in chosen:
        row, told = _row(item, [candidate for _, candidate in candidates], protocol)
        rows.append(row)
        captions.append(told)
    labels = [f"{item.degradation}\n{item.id}" for item in chosen]
    page = image_grid(rows, ["degraded", *(name for name, _ in candidates), "clean"], labels, captions)
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out, "PNG")
    return [label.replace("\n", " ") for label in labels]


def detail_of(clean: Picture, degraded: Picture) -> Detail:
    """Return the square whose clean pixels have most structure, among those that the degradation changed most."""
    side = max(16, int(min(clean.shape[:2]) * _DETAIL) // _STEP * _STEP)
    grey, harmed = clean.astype(np.float64).mean(2), degraded.astype(np.float64).mean(2)
    down, across = np.gradient(grey)
    structure = _sums(np.hypot(down, across), side)
    change = _sums(np.abs(grey - harmed), side)
    score = structure * (change + 1e-9)
    # The magnified detail covers the lower right corner: what it shows must lie outside it.
    covered = int(side * _MAGNIFY) + side
    height, width = grey.shape
    rows, columns = (np.arange(n) * _STEP for n in score.shape)
    score[np.ix_(rows > height - covered, columns > width - covered)] = -1
    top, left = np.unravel_index(int(score.argmax()), score.shape)
    return Detail(int(top) * _STEP, int(left) * _STEP, side)


def with_detail(picture: Picture, detail: Detail) -> Picture:
    """Return the picture with the detail framed, and magnified in the lower right corner."""
    image = Image.fromarray(picture)
    box = (detail.left, detail.top, detail.left + detail.side, detail.top + detail.side)
    size = int(detail.side * _MAGNIFY)
    large = image.crop(box).resize((size, size), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    line = max(1, min(image.size) // 160)
    draw.rectangle(box, outline=_FRAME, width=line)
    corner = (image.width - size, image.height - size)
    image.paste(large, corner)
    draw.rectangle((*corner, image.width - 1, image.height - 1), outline=_FRAME, width=line)
    return np.asarray(image)


def _choose(
    benchmarks: Benchmarks, degradations: Sequence[str], images: Sequence[str], count: int
) -> list[EvalItem]:
    crop = next(iter(benchmarks.crops))
    taken: dict[str, int] = {}
    chosen, known = [], set()
    for unit in benchmarks.units:
        held = benchmarks.sets[unit.crop, unit.manifest]
        degradation, id_ = held.name(unit.index)
        known.add(id_)
        wanted = id_ in images if images else taken.get(degradation, 0) < count
        if unit.crop == crop and wanted and (not degradations or degradation in degradations):
            taken[degradation] = taken.get(degradation, 0) + 1
            chosen.append(held[unit.index])
    if not chosen:
        raise EvaluationError(
            f"no image {', '.join(images) or 'at all'} under {', '.join(degradations) or 'any degradation'}. "
            f"There are: {', '.join(sorted(known)[:20])}; {', '.join(sorted({d for _, d in benchmarks.counts()}))}."
        )
    return chosen


def _row(
    item: EvalItem, candidates: Sequence[ModelUnderTest], protocol: str
) -> tuple[list[Picture], list[str]]:
    cpu = torch.device("cpu")
    degraded, clean = to_float(item.degraded, cpu), to_float(item.clean, cpu)
    results = [degraded, *(candidate(degraded) for candidate in candidates)]
    told = [f"{float(measure(image, clean, protocol)['psnr']):.2f} dB" for image in results]
    detail = detail_of(item.clean, item.degraded)
    pictures = [*(to_uint8(image) for image in results), item.clean]
    return [with_detail(picture, detail) for picture in pictures], [*told, ""]


def _sums(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Sums over squares of `side`, every `_STEP` pixels."""
    table = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums: NDArray[np.float64] = (
        table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    )
    return sums[::_STEP, ::_STEP].copy()
