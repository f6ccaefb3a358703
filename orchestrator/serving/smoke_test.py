"""The trial that a model has to pass before it answers anybody."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mirage import MIRAGE, ModelConfig
from orchestrator.imaging.photos import Photo
from orchestrator.restoration.restorer import Restorer

LEAST_PSNR = 10.0
"""Of the restored trial image [dB]. The degraded one has 20; black, white or noise has under 8."""


def trial_images() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a clean picture of soft shapes and the same with noise of sigma 25, each (3, 72, 88)."""
    y, x = np.mgrid[0:72, 0:88].astype(np.float32)
    waves = [0.5 + 0.25 * np.sin(x / period) * np.cos(y / (period + 3)) for period in (9, 13, 17)]
    clean = np.stack(waves).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 25 / 255, clean.shape).astype(np.float32)
    return clean, np.clip(clean + noise, 0, 1)


def warm_up() -> None:
    """Restore once with a model of the smallest size: PyTorch imports much on first use, which no request shall pay."""
    config = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1), drop_path=0.0)
    Restorer(MIRAGE(config)).pixels(Photo("the trial image", trial_images()[1], "PNG"))


def problem_of(restorer: Restorer) -> str:
    """Return what is wrong with a model, in one sentence, or ""."""
    clean, degraded = trial_images()
    restored = restorer.pixels(Photo("the trial image", degraded, "PNG"))
    if restored.shape != degraded.shape:
        return f"its result of the trial image has shape {restored.shape}, not {degraded.shape}."
    if not np.isfinite(restored).all():
        return "its result of the trial image is not finite."
    psnr = -10 * np.log10(max(float(np.mean((restored - clean) ** 2)), 1e-10))
    if psnr < LEAST_PSNR:
        return f"its result of the trial image is absurd: {psnr:.1f} dB, less than {LEAST_PSNR:g}."
    return ""
