"""`mirage bench train-parity`: ours and the release, trained side by side on the same real crops and noise.

Both start from the same weights and use AdamW and the release's objective, DropPath 0: the release by its own classes
and a statement of its loss, ours by our own model and loss. Rounding grows over the steps of any training, so a third
run shows how much: the release again, half of its weights moved to the next number that fp32 can hold.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mirage import MIRAGE, restore
from mirage.metrics import psnr
from mirage.release import from_release
from orchestrator.bench import networks
from orchestrator.bench.environment import Setting
from orchestrator.bench.errors import BenchError
from orchestrator.bench.model import adamw
from orchestrator.bench.networks import Subject
from shards.errors import PackError
from shards.images import list_images, read_image
from shards.photographs import PHOTOGRAPHS, read_photograph

Say = Callable[[str], object]
SIGMA = 25
"""Noise level, of 255."""
JUDGED = 256
"""Side of the held-out centre crops."""
ROUNDING = 10.0
"""Ours is as close as rounding explains while it is no further off than this many times the moved release."""


@dataclass(frozen=True)
class Curve:
    """How one run went."""

    losses: list[float]
    psnr: float
    """On held-out photographs, in dB."""


def run(options: argparse.Namespace, setting: Setting, say: Say) -> dict[str, Any]:
    """Train the three, print loss per step and final PSNR side by side, return the figures."""
    torch.manual_seed(options.seed)
    theirs = networks.release(options.release, options.size)
    start = {name: tensor.clone() for name, tensor in theirs.model.state_dict().items()}
    model = from_release(start)
    model.config = replace(model.config, drop_path=0.0)
    entrants = {
        "release": theirs,
        "ours": networks.from_model(model, "ours"),
        "moved": _moved(options, start),
    }
    training, held_out = _photographs(options)
    curves = {}
    for name, subject in entrants.items():
        curves[name] = _train(subject, training, held_out, options, setting)
        say(
            f"{name}: {options.steps} steps, loss {curves[name].losses[-1]:.6f}, PSNR {curves[name].psnr:.3f} dB"
        )
    return _report(curves, options, say)


def _moved(options: argparse.Namespace, start: dict[str, Tensor]) -> Subject:
    twin = networks.release(options.release, options.size)
    twin.model.load_state_dict(copy.deepcopy(start))
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        for p in twin.model.parameters():
            half = torch.rand(p.shape, generator=generator) < 0.5
            p.copy_(torch.where(half, torch.nextafter(p, torch.full_like(p, torch.inf)), p))
    return twin


def _photographs(options: argparse.Namespace) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Photographs to train on and, different ones, to judge by."""
    try:
        if options.photos is None:
            split = {
                kind: [read_photograph(p) for p in PHOTOGRAPHS if p.split == kind and p.package == "skimage"]
                for kind in ("train", "test")
            }
            training, held_out = split["train"], split["test"]
        else:
            images = [read_image(path) for path in list_images(options.photos)]
            held_out, training = images[:4], images[4:]
    except PackError as error:
        raise BenchError(str(error)) from error
    training = [image for image in training if min(image.shape[:2]) >= options.crop]
    if not training or not held_out:
        raise BenchError(
            f"--photos {options.photos}: needs four photographs to judge by and at least one more, of "
            f"{options.crop} pixels or larger, to train on."
        )
    return training, held_out


def _batches(
    photographs: list[NDArray[np.uint8]], options: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """(degraded, clean), the same for every run."""
    draw = np.random.default_rng(options.seed)
    size = options.crop
    for _ in range(options.steps):
        crops = []
        for _ in range(options.batch):
            image = photographs[draw.integers(len(photographs))]
            top, left = (draw.integers(side - size + 1) for side in image.shape[:2])
            crops.append(image[top : top + size, left : left + size])
        clean = _floats(np.stack(crops).transpose(0, 3, 1, 2))
        yield _noisy(clean, draw), torch.from_numpy(clean)


def _floats(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255)


def _noisy(clean: NDArray[np.float32], draw: np.random.Generator) -> Tensor:
    noise = draw.standard_normal(clean.shape, dtype=np.float32) * np.float32(SIGMA / 255)
    return torch.from_numpy(np.clip(clean + noise, 0, 1))


def _train(
    subject: Subject,
    training: list[NDArray[np.uint8]],
    held_out: list[NDArray[np.uint8]],
    options: argparse.Namespace,
    setting: Setting,
) -> Curve:
    model = subject.model.to(setting.device).train()
    optimizer = adamw(model, options.learning_rate, fused=isinstance(model, MIRAGE))  # as our jobs have it
    losses = []
    for degraded, clean in _batches(training, options):
        with setting.autocast(options.precision):
            loss = subject.loss(degraded.to(setting.device), clean.to(setting.device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return Curve(losses, _judge(model, subject, held_out, options, setting))


def _judge(
    model: nn.Module,
    subject: Subject,
    held_out: list[NDArray[np.uint8]],
    options: argparse.Namespace,
    setting: Setting,
) -> float:
    """Mean PSNR over noisy centre crops of the held-out photographs, each model by its own inference."""
    model.eval()
    draw = np.random.default_rng(options.seed + 1)
    found = []
    for image in held_out:
        height, width = (min(side, JUDGED) // 8 * 8 for side in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        crop = _floats(image[top : top + height, left : left + width].transpose(2, 0, 1)[None])
        degraded = _noisy(crop, draw).to(setting.device)
        with torch.no_grad(), setting.autocast(options.precision):
            restored = restore(model, degraded) if isinstance(model, MIRAGE) else subject.restored(degraded)
        found.append(float(psnr(restored.float().clamp(0, 1).cpu(), torch.from_numpy(crop))))
    return sum(found) / len(found)


def _report(curves: dict[str, Curve], options: argparse.Namespace, say: Say) -> dict[str, Any]:
    theirs, ours, moved = (curves[name] for name in ("release", "ours", "moved"))

    def off(curve: Curve) -> list[float]:
        return [abs(a - b) / abs(b) for a, b in zip(curve.losses, theirs.losses, strict=True)]

    by_us, by_rounding = off(ours), off(moved)
    say(f"{'step':>6}{'release':>14}{'ours':>14}{'difference':>13}{'release moved by rounding':>28}")
    shown = sorted({1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, options.steps})
    for step in (s for s in shown if s <= options.steps):
        say(
            f"{step:>6}{theirs.losses[step - 1]:>14.7f}{ours.losses[step - 1]:>14.7f}"
            f"{by_us[step - 1]:>13.1e}{by_rounding[step - 1]:>28.1e}"
        )
    say(
        f"PSNR  {theirs.psnr:>14.4f}{ours.psnr:>14.4f}"
        f"{ours.psnr - theirs.psnr:>+13.4f}{moved.psnr - theirs.psnr:>+28.4f}"
    )
    mean_us, mean_rounding = (sum(values) / len(values) for values in (by_us, by_rounding))
    same = mean_us <= ROUNDING * mean_rounding
    say(
        f"mean relative difference of the loss: ours {mean_us:.1e}, rounding alone {mean_rounding:.1e}: "
        + ("the same training to rounding" if same else "MORE THAN ROUNDING")
    )
    return {
        "same": same,
        "mean_difference": mean_us,
        "mean_difference_by_rounding": mean_rounding,
        **{name: {"losses": curve.losses, "psnr": curve.psnr} for name, curve in curves.items()},
    }
