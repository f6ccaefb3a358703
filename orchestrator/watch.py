"""What one sees of a run while it goes: the progress line, rates, and a fixed sheet of photographs."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mirage.metrics import psnr
from orchestrator.config import Validate
from orchestrator.evaluate import to_float
from orchestrator.sheet import sheet
from shards.evaluation import EvalItem, EvaluationSet


class Progress:
    """Where a run stands and how fast it goes; the clock never decides anything."""

    def __init__(self, step: int, total: int) -> None:
        self._total = total
        self._first = step
        self._began = self._mark = time.monotonic()
        self._steps = 0
        self._waited = 0.0
        self._before = self._began
        self._looked = self._began

    def is_time_to_look(self, seconds: float) -> bool:
        """Return whether that many seconds have passed since the last time that it was time."""
        now = time.monotonic()
        if now - self._looked < seconds:
            return False
        self._looked = now
        return True

    def data_arrived(self) -> None:
        """Note that it is here: the time since it was asked for was spent waiting."""
        self._waited += time.monotonic() - self._before

    def asks_for_data(self) -> None:
        """Note that the next batch is asked for."""
        self._before = time.monotonic()

    def step_taken(self) -> None:
        """Note the end of a step."""
        self._steps += 1

    def rates(self, batch: int) -> dict[str, float]:
        """Return images per second and the share of time that data was waited for, since the last call."""
        now = time.monotonic()
        passed = max(now - self._mark, 1e-9)
        values = {
            "perf/images_per_second": self._steps * batch / passed,
            "perf/data_wait": self._waited / passed,
        }
        self._mark, self._steps, self._waited = now, 0, 0.0
        return values

    def line(self, step: int, values: Mapping[str, float]) -> str:
        """Return the progress line."""
        done = step - self._first
        left = (time.monotonic() - self._began) / max(done, 1) * (self._total - step)
        terms = "  ".join(
            f"{name} {values[f'loss/{name}']:.4f}"
            for name in ("total", "l1", "fourier", "spd")
            if f"loss/{name}" in values
        )
        return (
            f"step {step}/{self._total}  {terms}  {values['perf/images_per_second']:.1f} images/s  "
            f"waiting for data {100 * values['perf/data_wait']:.1f} %  {_clock(left)} left"
        )


def validation_items(held_out: EvaluationSet, validation: Validate) -> list[EvalItem]:
    """Return centre crops of the first held-out photographs of each degradation: always the same."""
    items = []
    for index in held_out.first(validation.photographs):
        item, side = held_out[index], validation.crop_pixels
        items.append(replace(item, degraded=_centre(item.degraded, side), clean=_centre(item.clean, side)))
    return items


def comparison_sheet(
    items: Sequence[EvalItem], restore: Callable[[Tensor], Tensor], device: torch.device
) -> bytes:
    """Return a PNG: degraded, restored and clean side by side, a row for the first item of each degradation."""
    first: dict[str, EvalItem] = {}
    for item in items:
        first.setdefault(item.degradation, item)
    rows, captions = [], []
    for item in first.values():
        degraded, clean = to_float(item.degraded, device), to_float(item.clean, device)
        restored = restore(degraded)
        rows.append([item.degraded, to_uint8(restored), item.clean])
        captions.append([f"{float(psnr(x, clean)):.2f} dB" for x in (degraded, restored)] + [""])
    picture = sheet(rows, ["degraded", "restored", "clean"], list(first), captions)
    return _png(picture)


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """Return an (h, w, 3) image as a PNG file."""
    return _png(Image.fromarray(image))


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """Return a float (3, h, w) image in [0, 1] as (h, w, 3) uint8, rounded."""
    rounded = image.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(rounded.permute(1, 2, 0).cpu().numpy())


def _centre(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Crop the centre; sides become multiples of 8, the model's total stride, at most `side`."""
    height, width = (min(side, n - n % 8) for n in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
