"""Train with DeepSpeed ZeRO.

Stage 0 shards nothing, stage 1 the optimiser state, stage 2 also the gradients, stage 3 also the weights. Losses equal
those of DistributedDataParallel up to rounding. `optimizer_state` gathers the full state (about 20 MiB per moment), so
checkpoints do not depend on the stage or the number of workers, and any engine can resume from them.

Precision is handled as on the other engines: fp32 weights, autocast around the model, and our loss scale for fp16. From
stage 1 on DeepSpeed gets the scale before each step and unscales before it clips.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.models.network import UserModelAdapter
from orchestrator.training.engines.base import trainable
from orchestrator.training.engines.ddp import DistributedEngine
from orchestrator.training.engines.deepspeed_internals import import_deepspeed


class DeepSpeedEngine(DistributedEngine):
    """An engine with ZeRO stages 0 to 3 in an initialised `torch.distributed` world."""

    def __init__(
        self,
        device: torch.device,
        precision: str,
        stage: int,
        micro_batches: int,
        clip_norm: float | None,
        control_timeout: timedelta | None = None,
    ) -> None:
        super().__init__(device, precision, control_timeout)
        self.stage = stage
        self.sharded = stage > 0
        self._micro_batches = micro_batches
        self._clip_norm = clip_norm
        self._deepspeed: Any = None

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the model in a DeepSpeed engine, which then owns the storage of its parameters."""
        if isinstance(model, UserModelAdapter) and self.stage > 0:
            # Up to stage 2 DeepSpeed reduces gradients in the order in which they come, which must be the same on all
            # workers. In stage 3 the parameters are not whole where the order could be set.
            model.gradients = "in order" if self.stage < 3 else "as they come"
        self._deepspeed, *_ = import_deepspeed(self.device).initialize(
            model=_InAutocast(model, self),
            optimizer=optimizer,
            model_parameters=[p for _, p in trainable(model)],
            dist_init_required=False,
            config={
                # Shares of a batch may differ in size, so DeepSpeed only gets the number of micro-batches.
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": self._micro_batches,
                "gradient_clipping": self._clip_norm or 0.0,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": self.stage, "overlap_comm": self.device.type == "cuda"},
                "steps_per_print": 2**62,
            },
        )
        wrapped: nn.Module = self._deepspeed
        return wrapped

    def backward(self, share: Tensor) -> None:
        """Accumulate gradients; DeepSpeed averages over workers, but shares must be summed."""
        if self.loss_scale is not None and self.stage > 0:
            # DeepSpeed multiplies the loss by it.
            self._deepspeed.optimizer.override_loss_scale(float(self.loss_scale.factor))
        else:
            share = self.scale_loss(share)
        self._deepspeed.backward(share * self.world_size, scale_wrt_gas=False)

    def sync(self, *, last: bool) -> AbstractContextManager[object]:
        """Tell DeepSpeed which micro-batch is the step's last."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        """Clip, update and clear; DeepSpeed itself skips gradients that are not finite."""
        if self.stage == 0:
            return super().step(optimizer, max_norm)
        assert max_norm == self._clip_norm, "DeepSpeed was initialised with another clip norm"
        self._deepspeed.step()
        norm = torch.as_tensor(self._deepspeed.get_global_grad_norm(), device=self.device)
        if self.loss_scale is not None:
            self.loss_scale.update(torch.isfinite(norm))
        return norm

    def full_params(self, model: nn.Module) -> AbstractContextManager[object]:
        """Return a context that gathers the weights in stage 3."""
        if self.stage < 3:
            return contextlib.nullcontext()
        gathered: AbstractContextManager[object] = import_deepspeed(self.device).zero.GatheredParameters(
            list(model.parameters())
        )
        return gathered

    def optimizer_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Gather the moments from all workers."""
        if self.stage == 0:
            return super().optimizer_state(model, optimizer)
        slot: Mapping[str, Tensor] = next(filter(None, optimizer.state.values()), {})
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[str, Tensor] = {}
        for name, parameter in trainable(model):
            for kind, value in slot.items():
                whole = value if kind == "step" else safe_get_full_optimizer_state(parameter, kind)
                state[f"{name}/{kind}"] = whole.detach().to("cpu", copy=True)
        return state

    def load_optimizer_state(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]
    ) -> None:
        """Load this worker's part of the moments."""
        if self.stage == 0:
            super().load_optimizer_state(model, optimizer, state)
            return
        if not state:
            return
        by_kind = {key.rpartition("/")[2]: value for key, value in state.items()}
        steps = {"step": by_kind.pop("step")} if "step" in by_kind else {}
        zero = self._deepspeed.optimizer
        flats = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        for flat in flats:
            moments = {kind: torch.zeros_like(flat) for kind in by_kind}
            counts = {kind: value.to(flat.device, copy=True) for kind, value in steps.items()}
            optimizer.state[flat] = counts | moments
        put = self._put_sharded if self.stage == 3 else self._put_partitioned
        for name, parameter in trainable(model):
            for kind in by_kind:
                moment = state.get(
                    f"{name}/{kind}", torch.zeros(())
                )  # of old runs, without unused parameters
                shape = getattr(parameter, "ds_shape", parameter.shape)
                put(parameter, kind, moment.to(self.device).expand(shape).flatten(), optimizer)

    def _put_partitioned(
        self, parameter: Any, kind: str, value: Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        """Copy this worker's piece of a parameter into its flat vector (stages 1 and 2); it may have no piece."""
        mapping = parameter._hp_mapping
        if mapping is None:
            return
        (flat,) = self._deepspeed.optimizer.single_partition_of_fp32_groups
        ours, theirs = mapping.lp_fragment_address, mapping.hp_fragment_address
        piece = value.narrow(0, ours.start, ours.numel)
        optimizer.state[flat][kind].narrow(0, theirs.start, theirs.numel).copy_(piece)

    def _put_sharded(
        self, parameter: Any, kind: str, value: Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        """Copy this worker's piece of a parameter (stage 3): equal pieces, the last one padded."""
        from deepspeed.utils import safe_set_local_optimizer_state

        size = parameter.ds_tensor.numel()
        padded = nn.functional.pad(value, (0, size * self.world_size - value.numel()))
        safe_set_local_optimizer_state(parameter, padded.narrow(0, size * self.rank, size), kind)


class _InAutocast(nn.Module):
    """The model in this engine's autocast, which DeepSpeed disables around the module that it calls."""

    def __init__(self, model: nn.Module, engine: DeepSpeedEngine) -> None:
        super().__init__()
        self.model = model
        self._engine = [engine]  # in a list: not a submodule

    def forward(self, *inputs: Tensor) -> object:
        with self._engine[0].autocast():
            return self.model(*inputs)
