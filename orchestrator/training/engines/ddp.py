"""Train with DistributedDataParallel."""

from __future__ import annotations

import contextlib
import gc
import re
import warnings
from contextlib import AbstractContextManager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orchestrator.training.engines.base import Engine


def timed_out_waiting(error: Exception) -> bool:
    """Return whether an error says that another worker did not answer in time; torch has no type for it."""
    return re.search("time(d )?out", str(error), re.IGNORECASE) is not None


class DistributedEngine(Engine):
    """The collectives of an engine in an initialised `torch.distributed` world.

    control_timeout: longest wait for another worker's flag or text; None: torch's default, 30 minutes.
    control_backend: what carries them.
    """

    def __init__(
        self,
        device: torch.device,
        precision: str = "fp32",
        control_timeout: timedelta | None = None,
        control_backend: str = "gloo",
    ) -> None:
        super().__init__(device, precision)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        # Flags and text use the CPU, so that they never wait for a GPU. A new group does not inherit the
        # timeout of the default group.
        self._control = dist.new_group(backend=control_backend, timeout=control_timeout)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over workers."""
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the workers' numbers."""
        numbers = torch.tensor([number])
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._control)
        return int(numbers.item())

    def broadcast_from_rank0(self, text: str) -> str:
        """Return worker 0's text."""
        box = [text]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def all_gather(self, rows: list[dict[str, object]]) -> list[dict[str, object]]:
        """Return every worker's rows, in rank order."""
        boxes: list[list[dict[str, object]]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(boxes, rows, group=self._control)
        return [row for box in boxes for row in box]


class DDPEngine(DistributedEngine):
    """An engine with DistributedDataParallel: gloo on CPUs, NCCL on GPUs."""

    _wrapped: DistributedDataParallel | None = None

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Return the model in DistributedDataParallel.

        Buffers are not broadcast: BatchNorm synchronises its own statistics.
        """
        ids = [self.device.index] if self.device.type == "cuda" else None
        if self._wrapped is not None:
            # An earlier one is in a reference cycle, and its hooks stay on the parameters until it is collected.
            self._wrapped = None
            gc.collect()
        with warnings.catch_warnings():
            # What is to replace it does not exist yet: torch says to keep it until then.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._wrapped = DistributedDataParallel(
                model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        return self._wrapped

    def backward(self, share: Tensor) -> None:
        """Accumulate gradients; DDP averages over workers, but shares must be summed."""
        (self.scale_loss(share) * self.world_size).backward()  # type: ignore[no-untyped-call]

    def sync(self, *, last: bool) -> AbstractContextManager[object]:
        """Return DDP's `no_sync` for all but the last micro-batch."""
        assert self._wrapped is not None, "wrap the model before taking a step"
        if last:
            return contextlib.nullcontext()
        return self._wrapped.no_sync()
