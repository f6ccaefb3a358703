"""The training step of a job on fake tensors, for `mirage bench traffic`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from mirage import MIRAGE
from orchestrator.config.schema import Job
from orchestrator.models import network
from orchestrator.training import run_state
from orchestrator.training.engines.base import Engine
from orchestrator.training.step import train_step
from shards.crop_schedule import CropSchedule
from shards.stream import Batch

EMA_DECAY = 0.999


def training_step(model: MIRAGE, batch: int, crop: int, precision: str) -> Callable[[], None]:
    """Return a function that takes one step of `model` with clipping and EMA, on batches without own noise."""
    job = Job.model_validate(
        {
            "name": "traffic",
            "setting": "5deg",
            "storage": "nowhere",
            "data": {"manifests": ["none"], "mixture": {"rain": 1}, "crop_pixels": crop},
            "evaluate": {"degradations": ["rain"], "protocol": "rgb"},
            "track": {"experiment": "none"},
            "model": {"variant": "tiny"},
            "train": {
                "global_batch_size": batch,
                "precision": precision,
                "epochs": 100,
                "clip_norm": 1.0,
                "ema_decay": EMA_DECAY,
                "cuda_graph": "off",  # its kernels are those of an eager step
            },
            "workers": {"gpus": 1},
        }
    )
    stream: Any = SimpleNamespace(
        order=SimpleNamespace(steps_per_epoch=1000), stages=CropSchedule.constant(crop, batch)
    )
    engine = Engine(torch.device("cuda"), precision)
    with (
        mock.patch.object(network, "make", return_value=model),
        mock.patch.object(MIRAGE, "to", return_value=model),  # it is there already: fake tensors cannot move
    ):
        run = run_state.start(job, engine, stream, None, None)  # type: ignore[arg-type]
    with torch.device("cpu"):
        pixels = torch.zeros((batch, 3, crop, crop), dtype=torch.uint8)
        images = Batch(
            pixels,
            pixels,
            torch.zeros(batch),
            torch.arange(batch),
            ["rain"] * batch,
            [str(i) for i in range(batch)],
            (0, batch),
        )

    def step() -> None:
        train_step(run, [images])

    return step
