"""Costs of a user-defined network, found by running it without its numbers.

Tensors on the meta device have shapes and no memory, so a pass over them takes seconds for any size. Multiply-adds are
half the operations that torch's FLOP counter counts: those of convolutions, matrix products and attention. Activations
are the tensors that autograd keeps for the backward pass, each memory once. A network that cannot run there (because it
looks at values, or makes tensors on a device of its own) has unknown costs; its parameters are known anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mirage.memory import Precision
from orchestrator.config import crop_stages
from orchestrator.config.schema import Job, Model
from orchestrator.models import network
from orchestrator.models.user_network import UserModelAdapter
from orchestrator.planning.estimate import MemoryEstimate, largest_share, memory_of, precision_of

META = torch.device("meta")
MACS_AT = 224
"""Side of the image whose multiply-adds are stated, as in papers."""


@dataclass(frozen=True)
class NetworkCost:
    """Costs of a user-defined network."""

    parameters: int
    macs: int | None
    """Multiply-adds of one 3 x side x side image; None: unknown."""
    reason: str = ""
    """Why they are unknown."""


def network_cost(model: Model, side: int) -> NetworkCost:
    """Return the parameters and the multiply-adds of a section `model`. Raises ModelError if it cannot be built."""
    return _cost(model.model_dump_json(by_alias=True), side)


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of one worker that trains a user-defined network."""

    estimate: MemoryEstimate
    image_bytes: int
    """Activations of one image, at the crop stage whose images need the most."""

    def images_in(self, capacity: float) -> int:
        """Return how many images of a micro-batch fit a worker with `capacity` bytes."""
        rest = capacity - (self.estimate.total - self.estimate.activations)
        return max(0, int(rest // max(self.image_bytes, 1)))


def training_memory(job: Job, workers: int) -> TrainingMemory | None:
    """Return the memory of one of `workers`, None if the network cannot run on the meta device. Raises ModelError."""
    model = job.model.model_dump_json(by_alias=True)
    largest, each = 0, 0
    for stage, batch in zip(crop_stages.declared(job), crop_stages.batches(job), strict=True):
        found = _activations(model, stage.pixels, precision_of(job))
        if found is None:
            return None
        largest, each = max(largest, largest_share(job, batch, workers) * found), max(each, found)
    count = network_cost(job.model, MACS_AT).parameters
    return TrainingMemory(memory_of(job, workers, count, largest), each)


@cache
def _cost(model: str, side: int) -> NetworkCost:
    made = _on_meta(model)
    count = sum(p.numel() for p in made.parameters())
    side = -(-side // made.stride) * made.stride

    def count_macs() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made.eval()(torch.zeros(1, 3, side, side, device=META))
        return int(counter.get_total_flops()) // 2

    macs = _tried(count_macs)
    return NetworkCost(count, macs, "") if isinstance(macs, int) else NetworkCost(count, None, macs)


@cache
def _activations(model: str, side: int, precision: Precision) -> int | None:
    made = _on_meta(model).train()
    own = {id(p) for p in made.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(tensor) not in own:
            kept[storage._cdata] = (
                tensor,
                storage.nbytes(),
            )  # the tensor keeps its storage, and with it the number
        return tensor

    def run() -> int:
        image = torch.zeros(1, 3, side, side, device=META)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
        with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = made(image)
        return sum(size for _, size in kept.values()) + int(output.image.nbytes)

    found = _tried(run)
    return found if isinstance(found, int) else None


def _on_meta(model: str) -> UserModelAdapter:
    made = network.make(Model.model_validate_json(model))
    assert isinstance(made, UserModelAdapter), "called for user-defined networks"
    return made.to(META)


def _tried(run: Callable[[], int]) -> int | str:
    """Return the result, or why the network cannot run on the meta device."""
    try:
        return run()
    except Exception as error:  # the user's code
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
