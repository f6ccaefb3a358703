"""Draw what training will see: the first samples of a job in its own order, each exactly as a step gets it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mirage.metrics import psnr
from orchestrator.config.schema import Training
from orchestrator.data import datasets
from orchestrator.imaging.contact_sheet import GAP_PIXELS, image_grid
from orchestrator.imaging.convert import to_uint8
from shards.dataset import Dataset
from shards.degradations.pipeline import training_key
from shards.order import SampleOrder
from shards.stream import MicroBatch, TrainStream

_CHUNK = 4096
_ID_CHARACTERS = 24
_LINE_CHARACTERS, _MAX_LINES = 28, 40
"""Size of the text that says what a pipeline drew."""


@dataclass(frozen=True)
class Draw:
    """One sample of the stream."""

    position: int
    degradation: str
    photograph: str
    degraded: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    psnr: float
    """PSNR of the degraded crop [dB]."""
    operators: tuple[str, ...] = ()
    """The operators of a pipeline, each with the values that it drew here."""


def first_draws(job: Training, dataset: Dataset, count: int, step: int = 0) -> Mapping[str, list[Draw]]:
    """Return, for each degradation of the mixture, its first `count` samples from `step` on, at most an epoch later."""
    stream = datasets.train_stream(dataset, job)
    found: dict[str, list[Draw]] = {}
    start = stream.stages.position_at(step)
    for degradation, positions in _positions(stream.order, start, count).items():
        found[degradation] = [_draw(stream, job, position) for position in positions]
    return found


def preview_sheet(draws: Mapping[str, list[Draw]]) -> Image.Image:
    """Return a sheet with a row per degradation and a column per draw, the degraded crop above the clean one."""
    columns = max(map(len, draws.values()))
    drawn = {name: each for name, each in draws.items() if each}
    blank = np.full_like(_stacked(next(iter(drawn.values()))[0]), 255)
    rows, captions = [], []
    for each in drawn.values():
        missing = columns - len(each)
        rows.append([*map(_stacked, each), *[blank] * missing])
        captions.append([*map(_caption, each), *[""] * missing])
    titles = [f"draw {number}" for number in range(1, columns + 1)]
    return image_grid(rows, titles, list(drawn), captions)


def _positions(order: SampleOrder, start: int, count: int) -> dict[str, list[int]]:
    """Return the first `count` positions of each entry of the mixture, in the order of the job."""
    entries = order.mixture.entries
    found: list[list[int]] = [[] for _ in entries]
    end = start + order.positions_per_epoch
    for first in range(start, end, _CHUNK):
        drawn = order.draw(np.arange(first, min(end, first + _CHUNK))).entry
        for entry, positions in enumerate(found):
            wanted = np.flatnonzero(drawn == entry)[: count - len(positions)]
            positions += [first + int(offset) for offset in wanted]
        if all(len(positions) == count for positions in found):
            break
    return {entry.degradation: positions for entry, positions in zip(entries, found, strict=True)}


def _draw(stream: TrainStream, job: Training, position: int) -> Draw:
    stage = stream.stages.at_position(position)
    total = stage.batch // stream.micro_batches
    batch = stream.batch([position], 0, MicroBatch(position, total, stage.pixels))
    degraded, clean = batch.to_float(torch.device("cpu"), job.seed, job.data.noise)
    pipeline = stream.pipelines.get(batch.degradations[0])
    applied = pipeline.draw(training_key(job.seed, position)) if pipeline else ()
    return Draw(
        position,
        batch.degradations[0],
        batch.ids[0],
        to_uint8(degraded[0]),
        to_uint8(clean[0]),
        float(psnr(degraded[0], clean[0])),
        tuple(each.words() for each in applied),
    )


def _stacked(draw: Draw) -> NDArray[np.uint8]:
    gap = np.full((max(1, GAP_PIXELS * draw.clean.shape[1] // 256), draw.clean.shape[1], 3), 255, np.uint8)
    return np.concatenate([draw.degraded, gap, draw.clean])


def _caption(draw: Draw) -> str:
    name = draw.photograph
    short = name if len(name) <= _ID_CHARACTERS else f"…{name[1 - _ID_CHARACTERS :]}"
    wrapped = (textwrap.wrap(each, _LINE_CHARACTERS, break_on_hyphens=False) for each in draw.operators)
    lines = [line for several in wrapped for line in several]
    more = [*lines[: _MAX_LINES - 1], "..."] if len(lines) > _MAX_LINES else lines
    return "\n".join([short, f"position {draw.position:,}, {draw.psnr:.1f} dB", *more])
