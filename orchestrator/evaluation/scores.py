"""Score a model on held-out photographs, next to the degraded input and a trivial baseline.

The baseline is the best gain and offset per degradation, `a * degraded + b`, fitted by least squares to the same
held-out pixels. It is an oracle: no blind correction of brightness and contrast can do better, so a model that does
not exceed it has learned nothing about structure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from mirage.metrics import psnr, ssim
from orchestrator.evaluation.bootstrap import Interval, mean_over_images
from orchestrator.imaging.convert import to_float
from shards.evaluation import EvalItem

Restore = Callable[[Tensor], Tensor]
"""Map from float RGB (3, h, w) in [0, 1] to the same."""


@dataclass(frozen=True)
class ImageScore:
    """Quality of one held-out photograph under one degradation."""

    photograph: str
    degradation: str
    psnr: float
    ssim: float
    input_psnr: float
    input_ssim: float
    moments: tuple[float, ...]
    """n, sum x, sum y, sum xx, sum yy, sum xy over pixels and channels; x degraded, y clean."""

    @property
    def gain(self) -> float:
        """Improvement of PSNR over the degraded input [dB]."""
        return self.psnr - self.input_psnr


@dataclass(frozen=True)
class DegradationScore:
    """Mean over the photographs of one degradation, or over the degradations."""

    degradation: str
    n: int
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float
    gain: float
    """Improvement of PSNR over the degraded input [dB]."""
    gain_low: float
    """Lower end of the gain's 95 % bootstrap interval over photographs."""
    gain_high: float
    baseline_psnr: float
    """PSNR of the best gain and offset."""


def score_images(restore: Restore, items: Iterable[EvalItem], device: torch.device) -> list[ImageScore]:
    """Return the score of every item, in RGB and float. The items are cropped as the protocol asks."""
    scores = []
    for item in items:
        degraded, clean = to_float(item.degraded, device), to_float(item.clean, device)
        restored = restore(degraded)
        scores.append(
            ImageScore(
                photograph=item.id,
                degradation=item.degradation,
                psnr=float(psnr(restored, clean)),
                ssim=float(ssim(restored, clean)),
                input_psnr=float(psnr(degraded, clean)),
                input_ssim=float(ssim(degraded, clean)),
                moments=_moments(degraded, clean),
            )
        )
    return scores


def summarise(scores: Sequence[ImageScore], degradations: Sequence[str]) -> list[DegradationScore]:
    """Return one row per degradation in the given order, and a last row `average`: their unweighted mean."""
    groups: dict[str, list[ImageScore]] = defaultdict(list)
    for one in scores:
        groups[one.degradation].append(one)
    ordered = [sorted(groups[name], key=lambda s: s.photograph) for name in degradations]
    rows = [_row(group) for group in ordered]
    interval = _gain_interval(ordered)
    fields = ("input_psnr", "input_ssim", "psnr", "ssim", "gain", "baseline_psnr")
    average = DegradationScore(
        degradation="average",
        n=len(scores),
        gain_low=interval.low,
        gain_high=interval.high,
        **{name: float(np.mean([getattr(row, name) for row in rows])) for name in fields},
    )
    return [*rows, average]


def as_metrics(rows: Sequence[DegradationScore], prefix: str) -> dict[str, float]:
    """Return the rows as tracked metrics, `<prefix>/<degradation>/<quantity>`."""
    names = ("psnr", "ssim", "input_psnr", "input_ssim", "gain", "baseline_psnr")
    return {f"{prefix}/{row.degradation}/{name}": float(getattr(row, name)) for row in rows for name in names}


def as_records(scores: Sequence[ImageScore]) -> list[dict[str, object]]:
    """Return the scores as plain data."""
    return [asdict(s) for s in scores]


def from_records(records: Sequence[dict[str, object]]) -> list[ImageScore]:
    """Return the scores that `as_records` wrote."""
    return [ImageScore(**{**r, "moments": tuple(r["moments"])}) for r in records]  # type: ignore[arg-type]


def _row(group: Sequence[ImageScore]) -> DegradationScore:
    interval = _gain_interval([group])
    fields = ("input_psnr", "input_ssim", "psnr", "ssim", "gain")
    return DegradationScore(
        degradation=group[0].degradation,
        n=len(group),
        gain_low=interval.low,
        gain_high=interval.high,
        baseline_psnr=_baseline_psnr(group),
        **{name: float(np.mean([getattr(s, name) for s in group])) for name in fields},
    )


def _gain_interval(groups: Sequence[Sequence[ImageScore]]) -> Interval:
    return mean_over_images([{s.photograph: s.gain for s in group} for group in groups])


def _moments(x: Tensor, y: Tensor) -> tuple[float, ...]:
    x, y = x.double(), y.double()
    sums = (x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum())
    return (float(x.numel()), *(float(s) for s in sums))


def _baseline_psnr(group: Sequence[ImageScore]) -> float:
    """Return the mean PSNR of the least-squares gain and offset, fitted over the whole group at once."""
    n, sx, sy, sxx, _, sxy = np.sum([s.moments for s in group], axis=0)
    variance = sxx / n - (sx / n) ** 2
    a = (sxy / n - sx * sy / n**2) / variance if variance > 0 else 0.0
    b = sy / n - a * sx / n
    values = []
    for n, sx, sy, sxx, syy, sxy in (s.moments for s in group):
        squared = syy + a * a * sxx + n * b * b - 2 * a * sxy - 2 * b * sy + 2 * a * b * sx
        values.append(-10 * math.log10(max(squared / n, 1e-12)))
    return float(np.mean(values))
