"""Engines: what differs between one process and many when a step is taken.

An engine owns the place in the world (rank, device), the wrapping of the model, precision, gradient
synchronisation, clipping, and the few things that workers must agree on. `train` reads the same on all of them.
The loss that an engine is given is this process's *share*: summed over the workers it is the loss of the global
batch (`mirage.loss`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from orchestrator.training.engines.loss_scale import LossScale

if TYPE_CHECKING:
    pass


class Engine(Protocol):
    """What the training loop asks of the processes it runs on."""

    rank: int
    world_size: int
    device: torch.device
    loss_scale: LossScale | None
    """Of the loss, in fp16."""
    sharded: bool
    """Whether each worker holds a part only, so that all must take part in reading weights or optimiser state."""

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the module to call in training; its parameters are those of `model`, which `optimizer` moves.

        Load the model's weights before: an engine may copy them.
        """

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that a forward pass runs in."""

    def backward(self, share: Tensor, *, last: bool) -> None:
        """Accumulate gradients of this worker's share; they cross the network with the `last` one."""

    def sync(self, *, last: bool) -> AbstractContextManager[object]:
        """Return the context for one micro-batch: only the `last` of a step talks to other workers."""

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        """Clip, update, clear the gradients; return their norm before clipping, equal on all workers.

        A norm that is not finite leaves weights and optimiser as they were.
        """

    def full_params(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return the context in which all of the model's weights can be read; entered by all workers together."""

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the whole optimiser state on the CPU, `<parameter>/<kind>` -> tensor; asked of all workers together.

        The same names and shapes on every engine and for any number of workers.
        """

    def load_optimizer_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]
    ) -> None:
        """Put what `optimizer_state` returned, on any engine, into the optimiser; after `wrap`."""

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return `values` summed over the workers."""

    def all_reduce_any(self, flag: bool) -> bool:
        """Return whether any worker says so; equal on all workers."""

    def all_reduce_max(self, number: int) -> int:
        """Return the largest number that any worker gives; equal on all workers."""

    def broadcast_from_rank0(self, text: str) -> str:
        """Return what worker 0 says, on all workers."""

    def all_gather(self, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        """Return the rows of all workers, on all workers."""


class InProcessEngine:
    """One process, no Ray and no network: debugging, tests, and one GPU on a desk."""

    rank = 0
    world_size = 1
    sharded = False

    def __init__(self, device: torch.device, precision: str = "fp32") -> None:
        self.device = device
        self.precision = precision
        self.loss_scale = LossScale() if precision == "fp16" else None
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"  # torch's own default is True

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the model itself."""
        return model

    def autocast(self) -> AbstractContextManager[object]:
        """Return autocast to the 16 bits that the job asks for."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype=kind) if kind else contextlib.nullcontext()

    def backward(self, share: Tensor, *, last: bool) -> None:
        """Accumulate gradients."""
        self.scale_loss(share).backward()  # type: ignore[no-untyped-call]

    def scale_loss(self, share: Tensor) -> Tensor:
        """Return the share multiplied by the loss scale, if there is one."""
        return share if self.loss_scale is None else share * self.loss_scale.factor

    def sync(self, *, last: bool) -> AbstractContextManager[object]:
        """Return an empty context: there is nobody to talk to."""
        return contextlib.nullcontext()

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        """Take the loss scale off again, clip, update, clear."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.loss_scale is not None:
            torch._foreach_mul_(
                [p.grad for p in parameters if p.grad is not None], 1 / self.loss_scale.factor
            )
        norm = self.clip(parameters, max_norm)
        finite = bool(torch.isfinite(norm))
        if finite:
            optimizer.step()
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        optimizer.zero_grad(set_to_none=True)
        return norm

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
        """Clip in place; an infinite bound only measures."""
        return nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)

    def full_params(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return an empty context: every worker holds all weights."""
        return contextlib.nullcontext()

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the optimiser's own state under the names of the parameters."""
        names = [name for name, _ in trainable(model)]
        state = optimizer.state_dict()["state"]
        return {
            f"{names[i]}/{kind}": value.detach().to("cpu", copy=True)
            for i, slots in state.items()
            for kind, value in slots.items()
        }

    def load_optimizer_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]
    ) -> None:
        """Load it as the optimiser's own."""
        index = {name: i for i, (name, _) in enumerate(trainable(model))}
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, kind = key.rsplit("/", 1)
            slots.setdefault(index[name], {})[kind] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def all_reduce_any(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def all_reduce_max(self, number: int) -> int:
        """Return the number."""
        return number

    def broadcast_from_rank0(self, text: str) -> str:
        """Return the text."""
        return text

    def all_gather(self, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        """Return the rows."""
        return rows


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that an optimiser moves, by name, in the order in which it is given them."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
