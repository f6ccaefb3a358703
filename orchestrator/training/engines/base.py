"""Define the interface of engines, which distribute a training step, as an engine for one process.

An engine owns rank and device, the wrapping of the model, precision, gradient synchronisation, clipping, and
collectives. The loss passed to an engine is this worker's *share*: the sum over workers is the loss of the global
batch (`mirage.loss`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from orchestrator.training.engines.loss_scale import LossScale


class Engine:
    """The processes that a training loop runs on, as it sees them; this class: a single process without Ray."""

    rank = 0
    world_size = 1
    sharded = False
    """True if each worker holds only a part, so that all must take part in reading weights or optimiser state."""

    def __init__(self, device: torch.device, precision: str = "fp32") -> None:
        self.device = device
        self.precision = precision
        self.loss_scale = LossScale(device) if precision == "fp16" else None
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"  # torch's own default is True

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the module to call in training; it has the parameters of `model`, which `optimizer` updates.

        Load the model's weights first: an engine may copy them.
        """
        return model

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass: autocast to the job's 16-bit type, if it has one."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype=kind) if kind else contextlib.nullcontext()

    def backward(self, share: Tensor) -> None:
        """Accumulate gradients of this worker's share."""
        self.scale_loss(share).backward()  # type: ignore[no-untyped-call]

    def scale_loss(self, share: Tensor) -> Tensor:
        """Return the share multiplied by the loss scale, if there is one."""
        return share if self.loss_scale is None else share * self.loss_scale.factor

    def sync(self, *, last: bool) -> AbstractContextManager[object]:
        """Return the context of one micro-batch: only the `last` of a step communicates."""
        return contextlib.nullcontext()

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        """Clip, update, clear the gradients; return their norm before clipping, equal on all workers.

        An update whose norm is not finite is skipped. Fused optimisers do it on the device, so that the host does not
        wait for the norm.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.loss_scale is not None:
            torch._foreach_mul_(
                [p.grad for p in parameters if p.grad is not None], self.loss_scale.factor.reciprocal()
            )
        norm = self.clip(parameters, max_norm)
        finite = torch.isfinite(norm)
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # as torch's GradScaler sets it
            optimizer.step()
        elif finite:
            optimizer.step()
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        optimizer.zero_grad(set_to_none=True)
        return norm

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
        """Clip in place, or only measure; return the norm before."""
        if max_norm is not None:
            return nn.utils.clip_grad_norm_(parameters, max_norm)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def full_params(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which all of the model's weights can be read; all workers enter it together."""
        return contextlib.nullcontext()

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the full optimiser state on the CPU, `<parameter>/<kind>` -> tensor; all workers call this together.

        Names and shapes do not depend on the engine or the number of workers.
        """
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
        """Load a state that `optimizer_state` of any engine returned; call it after `wrap`."""
        index = {name: i for i, (name, _) in enumerate(trainable(model))}
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, kind = key.rsplit("/", 1)
            slots.setdefault(index[name], {})[kind] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return `values` summed over the workers."""
        return values

    def all_reduce_max(self, number: int) -> int:
        """Return the largest number of all workers; equal on all workers."""
        return number

    def all_reduce_any(self, flag: bool) -> bool:
        """Return whether the flag is set on any worker; equal on all workers."""
        return bool(self.all_reduce_max(int(flag)))

    def broadcast_from_rank0(self, text: str) -> str:
        """Return worker 0's text, on all workers."""
        return text

    def all_gather(self, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        """Return the rows of all workers, in rank order, on all workers."""
        return rows


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters by name, in the optimiser's order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
