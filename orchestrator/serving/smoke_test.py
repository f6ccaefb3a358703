"""The smoke test that a model must pass before it serves requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mirage import MIRAGE, ModelConfig
from orchestrator.imaging.photos import Photo
from orchestrator.restoration.restorer import Restorer

MIN_PSNR = 10.0
"""PSNR of the restored probe image [dB]. The degraded one has 20; black, white or noise has less than 8."""


def probe_images() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a clean image of soft shapes and the same with noise of sigma 25, each (3, 72, 88) in [0, 1]."""
    y, x = np.mgrid[0:72, 0:88].astype(np.float32)
    waves = [0.5 + 0.25 * np.sin(x / period) * np.cos(y / (period + 3)) for period in (9, 13, 17)]
    clean = np.stack(waves).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 25 / 255, clean.shape).astype(np.float32)
    return clean, np.clip(clean + noise, 0, 1)


def warm_up() -> None:
    """Restore once with a model of the smallest size: PyTorch imports much on first use."""
    config = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1), drop_path=0.0)
    Restorer(MIRAGE(config)).pixels(Photo("the probe image", probe_images()[1], "PNG"))


def find_problem(restorer: Restorer) -> str:
    """Return what is wrong with a model in one sentence, or ""."""
    clean, degraded = probe_images()
    restored = restorer.pixels(Photo("the probe image", degraded, "PNG"))
    if restored.shape != degraded.shape:
        return f"its result for the probe image has shape {restored.shape}, not {degraded.shape}."
    if not np.isfinite(restored).all():
        return "its result for the probe image is not finite."
    psnr = -10 * np.log10(max(float(np.mean((restored - clean) ** 2)), 1e-10))
    if psnr < MIN_PSNR:
        return f"its result for the probe image has a PSNR of {psnr:.1f} dB, less than {MIN_PSNR:g}."
    return ""
