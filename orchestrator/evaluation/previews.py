"""Draw comparison sheets of held-out photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mirage.metrics import psnr
from orchestrator.config.schema import ValidationOptions
from orchestrator.imaging.contact_sheet import image_grid
from orchestrator.imaging.convert import encode_png, to_float, to_uint8
from shards.evaluation import EvalItem, EvaluationSet


def validation_items(held_out: EvaluationSet, validation: ValidationOptions) -> list[EvalItem]:
    """Return centre crops of the first held-out photographs of each degradation, the same ones every time."""
    centre = partial(_centre, side=validation.crop_pixels)
    return [held_out.item(index, centre) for index in held_out.first(validation.photographs)]


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
    return encode_png(image_grid(rows, ["degraded", "restored", "clean"], list(first), captions))


def _centre(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the centre crop; its sides are multiples of 8, the stride of the model, and at most `side`."""
    height, width = (min(side, n - n % 8) for n in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
