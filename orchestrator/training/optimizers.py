"""Make the optimiser that a job names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from orchestrator.config.schema import Train
from orchestrator.errors import TrainingError

LION_PACKAGE = "lion-pytorch"


def make(train: Train, parameters: Sequence[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser of `parameters`; its learning rate is a tensor that each step sets.

    Raises TrainingError if its package is not installed.
    """
    optimizer: torch.optim.Optimizer
    common: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    if train.optimizer == "sgd":
        optimizer = _SGD(parameters, **common, momentum=train.momentum, nesterov=train.nesterov, fused=True)
    elif train.optimizer == "lion":
        require_installed(train)
        from lion_pytorch import Lion

        optimizer = Lion(parameters, **common, betas=train.betas)
    else:
        kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(
            parameters, **common, betas=train.betas, fused=True, capturable=device.type == "cuda"
        )
    # In fp32 on CUDA, whose kernel reads no other type, and in Python's precision on the CPU.
    rate = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32)
    for group in optimizer.param_groups:
        group["lr"] = rate.to(device)
    return optimizer


def require_installed(train: Train) -> None:
    """Raise TrainingError unless the package of the job's optimiser is installed."""
    if train.optimizer == "lion" and find_spec("lion_pytorch") is None:
        raise TrainingError(
            f"train.optimizer lion needs the package {LION_PACKAGE}: pip install {LION_PACKAGE} on every node, or set "
            "train.optimizer to adamw, adam or sgd."
        )


class _SGD(torch.optim.SGD):
    """SGD whose momentum begins at zero.

    The one of torch begins with memory that has no values if the first step is skipped because it is not finite.
    """

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return super().step(closure)
