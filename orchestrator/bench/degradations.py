"""`mirage bench degradations`: degraded crops per second of one core, by operator and for three pipelines.

Real-ESRGAN's second order is also made of BasicSR's own functions, from a checkout: kernels in NumPy for each crop,
then convolution, resizing, noise and differentiable JPEG in PyTorch for a batch, in the order and with the options of
its x4 training at the scale 1. The two run in turn, on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import random
import sys
import types
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.bench import timing
from orchestrator.bench.environment import Echo, Environment
from orchestrator.bench.errors import BenchError
from orchestrator.bench.raw_datasets import photographs
from orchestrator.tables import aligned
from shards.degradations.operator import OPERATORS, Parameter, Value
from shards.degradations.parse import parse_pipelines
from shards.degradations.pipeline import Pipeline

CROP = 128
BATCH = 8
"""Crops per batch of the peer, and per measurement."""
BATCHES = 10
"""Batches per measurement of the second order: the peer draws sizes and kinds of noise once for a batch."""
PIPELINES = {
    "denoise": [{"gaussian_noise": {"sigma": {"range": [0, 55]}}}],
    "Real-ESRGAN, second order": [{"use": "real_esrgan"}],
    "CDD-11, low + haze + rain": [{"use": "cdd11_low_haze_rain"}],
}
SECOND_ORDER = "Real-ESRGAN, second order"


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Measure all operators and pipelines, print two tables, and return the figures."""
    crops = [np.ascontiguousarray(image[:CROP, :CROP]) for image in photographs(None)]
    crops = (crops * BATCH)[:BATCH]
    operators = [name for name, each in OPERATORS.items() if not each.lacks_package]
    pipelines = [
        parse_pipelines({"bench": steps})["bench"] for steps in (*PIPELINES.values(), *map(_alone, operators))
    ]
    runs: dict[str, Callable[[], object]] = {
        name: _degrade(pipeline, crops)
        for name, pipeline in zip((*PIPELINES, *operators), pipelines, strict=True)
    }
    peer = "BasicSR's functions"
    if options.peer:
        pair: dict[str, Callable[[], object]] = {
            SECOND_ORDER: runs.pop(SECOND_ORDER),
            peer: _Peer(options.peer, crops, options.seed),
        }
        runs = {**{name: _repeated(run) for name, run in pair.items()}, **runs}
    times = timing.interleaved(runs, options.repeats, timing.cpu_seconds)
    batches = {SECOND_ORDER: BATCHES, peer: BATCHES} if options.peer else {}
    rates = {
        name: batches.get(name, 1) * len(crops) / float(np.median(seconds)) for name, seconds in times.items()
    }
    echo(
        "\n".join(aligned(("", "crops / s"), [(name, f"{rate:,.0f}") for name, rate in rates.items()], "<>"))
    )
    result: dict[str, Any] = {"crops_per_second": rates}
    if options.peer:
        faster = timing.ratio(times[peer], times[SECOND_ORDER])
        echo(
            f"\nSecond order: {faster} times BasicSR's functions, median (quartiles) of {options.repeats} pairs "
            f"of {BATCHES * len(crops)} crops each."
        )
        result["second_order_ratio"] = [faster.median, faster.low, faster.high]
    return result


def _alone(name: str) -> list[dict[str, Any]]:
    return [{name: {key: _middle(each) for key, each in OPERATORS[name].parameters.items()}}]


def _middle(of: Parameter) -> Value:
    """Return the default of a parameter, else a fifth of its range."""
    if of.default is not None:
        return of.default
    value = of.minimum + (of.maximum - of.minimum) / 5
    return int(value) if of.integer else value


def _degrade(pipeline: Pipeline, crops: list[NDArray[np.uint8]]) -> Callable[[], object]:
    numbers = count()
    return lambda: [pipeline.degrade(crop, f"bench/{next(numbers)}") for crop in crops]


def _repeated(run: Callable[[], object]) -> Callable[[], object]:
    return lambda: [run() for _ in range(BATCHES)]


class _Peer:
    """Real-ESRGAN's second order from the functions of a checkout of BasicSR."""

    def __init__(self, checkout: Path, crops: list[NDArray[np.uint8]], seed: int) -> None:
        folder = checkout / "basicsr"
        if not (folder / "data" / "degradations.py").is_file():
            raise BenchError(f"--peer {checkout}: is no checkout of XPixelGroup/BasicSR.")
        _stub_torchvision()
        self._degradations = _module(folder / "data" / "degradations.py")
        self._filter = _module(folder / "utils" / "img_process_util.py").filter2D
        self._jpeg = _module(folder / "utils" / "diffjpeg.py").DiffJPEG(differentiable=False)
        self._crops = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous() / 255
        random.seed(seed)
        np.random.seed(seed)  # the checkout draws from there
        torch.manual_seed(seed)

    def __call__(self) -> torch.Tensor:
        """Return a batch of degraded crops."""
        with torch.inference_mode():
            image = self._filter(self._crops, self._kernels(3))
            up, down, keep = random.uniform(1, 1.5), random.uniform(0.15, 1), 1.0
            scale = random.choices((up, down, keep), (0.2, 0.7, 0.1))[0]
            image = torch.nn.functional.interpolate(image, scale_factor=scale, mode=self._mode())
            image = self._compressed(self._noisy(image, 30, 3))
            if random.random() < 0.8:
                image = self._filter(image.contiguous(), self._kernels(1.5))
            up, down = random.uniform(1, 1.2), random.uniform(0.3, 1)
            scale = random.choices((up, down, keep), (0.3, 0.4, 0.3))[0]
            image = self._resized(image, int(CROP * scale))
            image = self._noisy(image, 25, 2.5)
            if random.random() < 0.5:
                return self._compressed(self._back(image))
            return self._back(self._compressed(image))

    def _kernels(self, sigma: float) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._kernel(sigma) for _ in self._crops])).float()

    def _kernel(self, sigma: float) -> NDArray[np.float64]:
        size = random.choice(range(7, 22, 2))
        if random.random() < 0.1:
            cutoff = random.uniform(math.pi / (3 if size < 13 else 5), math.pi)
            kernel: NDArray[np.float64] = self._degradations.circular_lowpass_kernel(cutoff, size, pad_to=21)
            return kernel
        kinds = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
        shares, sigmas = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), (0.2, sigma)
        turn, betas = (-math.pi, math.pi), ((0.5, 4), (1, 2))
        kernel = self._degradations.random_mixed_kernels(kinds, shares, size, sigmas, sigmas, turn, *betas)
        return np.pad(kernel, (21 - size) // 2)

    def _noisy(self, image: torch.Tensor, sigma: float, strength: float) -> torch.Tensor:
        gaussian = random.random() < 0.5
        add = (
            self._degradations.random_add_gaussian_noise_pt
            if gaussian
            else self._degradations.random_add_poisson_noise_pt
        )
        noisy: torch.Tensor = add(
            image, (1, sigma) if gaussian else (0.05, strength), gray_prob=0.4, clip=True
        )
        return noisy

    def _compressed(self, image: torch.Tensor) -> torch.Tensor:
        quality = torch.empty(len(image)).uniform_(30, 95)
        compressed: torch.Tensor = self._jpeg(image.clamp(0, 1), quality=quality)
        return compressed

    def _back(self, image: torch.Tensor) -> torch.Tensor:
        image = self._resized(image, CROP)
        if random.random() < 0.8:
            cutoffs = [random.uniform(math.pi / 3, math.pi) for _ in image]
            lowpass = self._degradations.circular_lowpass_kernel
            kernels = [lowpass(each, random.choice(range(7, 22, 2)), pad_to=21) for each in cutoffs]
            image = self._filter(image.contiguous(), torch.from_numpy(np.stack(kernels)).float())
        return image

    def _resized(self, image: torch.Tensor, side: int) -> torch.Tensor:
        return torch.nn.functional.interpolate(image, size=(side, side), mode=self._mode())

    @staticmethod
    def _mode() -> str:
        return random.choice(("area", "bilinear", "bicubic"))


def _module(path: Path) -> ModuleType:
    """Return a module of the checkout without its package, whose import needs much more."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise BenchError(
            f"--peer: {path} needs {error.name}. Install it outside the project, for cv2: "
            "pip install --target FOLDER opencv-python-headless, then PYTHONPATH=FOLDER."
        ) from error
    return module


def _stub_torchvision() -> None:
    """Give the checkout its one function of torchvision where that is not installed."""
    if importlib.util.find_spec("torchvision") is not None:
        return

    def grey(image: torch.Tensor, num_output_channels: int = 1) -> torch.Tensor:
        return (image * torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)

    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    modules = [types.ModuleType(name) for name in names]
    modules[-1].rgb_to_grayscale = grey  # type: ignore[attr-defined]
    sys.modules.update(zip(names, modules, strict=True))
