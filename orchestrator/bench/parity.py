"""`mirage bench train-parity`: ours and the release, trained side by side on the same real crops and noise.

Both start from the same weights with AdamW, the release's objective and DropPath 0: the release by its own classes and
a statement of its loss, ours by our own model and loss. Rounding errors grow in any training, so a third run shows how
much: the release again, with half of its weights moved to the next number that fp32 can represent.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mirage import MIRAGE, restore
from mirage.metrics import psnr
from mirage.release import from_release
from orchestrator.bench import networks
from orchestrator.bench.environment import Echo, Environment
from orchestrator.bench.errors import BenchError
from orchestrator.bench.model import adamw
from orchestrator.bench.networks import BenchNetwork
from orchestrator.tables import aligned
from shards.errors import PackError
from shards.images import list_images, read_image
from shards.photographs import PHOTOGRAPHS, read_photograph

SIGMA = 25
"""Noise level, of 255."""
TEST_CROP = 256
"""Side of the held-out centre crops [px]."""
MAX_RATIO = 10.0
"""Ours equals the release to rounding while its difference is at most this many times that of the moved release."""

Photographs = list[NDArray[np.uint8]]


@dataclass(frozen=True)
class TrainingCurve:
    """Loss per step and final quality of one run."""

    losses: list[float]
    psnr: float
    """On held-out photographs [dB]."""


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Train the three, print loss per step and final PSNR side by side, return the results."""
    torch.manual_seed(options.seed)
    release = networks.release(options.release, options.size)
    start = {name: tensor.clone() for name, tensor in release.model.state_dict().items()}
    model = from_release(start)
    model.config = replace(model.config, drop_path=0.0)
    candidates = {
        "release": release,
        "ours": networks.from_model(model, "ours"),
        "moved": _moved_release(options, start),
    }
    training, held_out = _photographs(options)
    curves = {}
    for name, candidate in candidates.items():
        curve = curves[name] = _train(candidate, training, held_out, options, environment)
        echo(f"{name}: {options.steps} steps, loss {curve.losses[-1]:.6f}, PSNR {curve.psnr:.3f} dB")
    return _report(curves, options, echo)


def _moved_release(options: argparse.Namespace, start: dict[str, Tensor]) -> BenchNetwork:
    """Return the release with half of its weights moved to the next larger fp32 number."""
    release = networks.release(options.release, options.size)
    release.model.load_state_dict(copy.deepcopy(start))
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        for p in release.model.parameters():
            half = torch.rand(p.shape, generator=generator) < 0.5
            p.copy_(torch.where(half, torch.nextafter(p, torch.full_like(p, torch.inf)), p))
    return release


def _photographs(options: argparse.Namespace) -> tuple[Photographs, Photographs]:
    """Return photographs for training, and others for testing."""
    try:
        if options.photos is None:
            training, held_out = (
                [read_photograph(p) for p in PHOTOGRAPHS if p.split == split and p.package == "skimage"]
                for split in ("train", "test")
            )
        else:
            images = [read_image(path) for path in list_images(options.photos)]
            held_out, training = images[:4], images[4:]
    except PackError as error:
        raise BenchError(str(error)) from error
    training = [image for image in training if min(image.shape[:2]) >= options.crop]
    if not training or not held_out:
        raise BenchError(
            f"--photos {options.photos}: needs four photographs for testing and at least one more, of "
            f"{options.crop} pixels or larger, for training."
        )
    return training, held_out


def _batches(photographs: Photographs, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of (degraded, clean), the same for every run."""
    rng = np.random.default_rng(options.seed)
    size = options.crop
    for _ in range(options.steps):
        crops = []
        for _ in range(options.batch):
            image = photographs[rng.integers(len(photographs))]
            top, left = (rng.integers(side - size + 1) for side in image.shape[:2])
            crops.append(image[top : top + size, left : left + size])
        clean = _to_float(np.stack(crops).transpose(0, 3, 1, 2))
        yield _noisy(clean, rng), torch.from_numpy(clean)


def _to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255)


def _noisy(clean: NDArray[np.float32], rng: np.random.Generator) -> Tensor:
    noise = rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(SIGMA / 255)
    return torch.from_numpy(np.clip(clean + noise, 0, 1))


def _train(
    candidate: BenchNetwork,
    training: Photographs,
    held_out: Photographs,
    options: argparse.Namespace,
    environment: Environment,
) -> TrainingCurve:
    model = candidate.model.to(environment.device).train()
    optimizer = adamw(model, options.learning_rate, fused=isinstance(model, MIRAGE))  # fused as in our jobs
    losses = []
    for degraded, clean in _batches(training, options):
        with environment.autocast(options.precision):
            loss = candidate.loss(degraded.to(environment.device), clean.to(environment.device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return TrainingCurve(losses, _test(model, candidate, held_out, options, environment))


def _test(
    model: nn.Module,
    candidate: BenchNetwork,
    held_out: Photographs,
    options: argparse.Namespace,
    environment: Environment,
) -> float:
    """Return the mean PSNR over noisy centre crops of the held-out photographs."""
    model.eval()
    rng = np.random.default_rng(options.seed + 1)
    found = []
    for image in held_out:
        height, width = (min(side, TEST_CROP) // 8 * 8 for side in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        crop = _to_float(image[top : top + height, left : left + width].transpose(2, 0, 1)[None])
        degraded = _noisy(crop, rng).to(environment.device)
        with torch.no_grad(), environment.autocast(options.precision):
            restored = restore(model, degraded) if isinstance(model, MIRAGE) else candidate.infer(degraded)
        found.append(float(psnr(restored.float().clamp(0, 1).cpu(), torch.from_numpy(crop))))
    return fmean(found)


def _report(curves: dict[str, TrainingCurve], options: argparse.Namespace, echo: Echo) -> dict[str, Any]:
    release, ours, moved = (curves[name] for name in ("release", "ours", "moved"))

    def difference(curve: TrainingCurve) -> list[float]:
        return [abs(a - b) / abs(b) for a, b in zip(curve.losses, release.losses, strict=True)]

    by_ours, by_rounding = difference(ours), difference(moved)
    shown = sorted({1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, options.steps})
    rows = [
        (
            str(step),
            f"{release.losses[step - 1]:.7f}",
            f"{ours.losses[step - 1]:.7f}",
            f"{by_ours[step - 1]:.1e}",
            f"{by_rounding[step - 1]:.1e}",
        )
        for step in shown
        if step <= options.steps
    ]
    psnr_row = (
        "PSNR",
        f"{release.psnr:.4f}",
        f"{ours.psnr:.4f}",
        f"{ours.psnr - release.psnr:+.4f}",
        f"{moved.psnr - release.psnr:+.4f}",
    )
    head = ("step", "release", "ours", "difference", "release moved by rounding")
    echo("\n".join(aligned(head, [*rows, psnr_row], ">>>>>")))
    mean_ours, mean_rounding = fmean(by_ours), fmean(by_rounding)
    same = mean_ours <= MAX_RATIO * mean_rounding
    echo(
        f"mean relative difference of the loss: ours {mean_ours:.1e}, rounding alone {mean_rounding:.1e}: "
        + ("the same training to rounding" if same else "MORE THAN ROUNDING")
    )
    return {
        "same": same,
        "mean_difference": mean_ours,
        "mean_difference_by_rounding": mean_rounding,
        **{name: {"losses": curve.losses, "psnr": curve.psnr} for name, curve in curves.items()},
    }
