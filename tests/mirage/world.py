"""One process of the distributed tests, of as many as there are sizes.

Trains the same 8 images once per scenario; rank 0 writes the losses and gradients of all processes together. Scenarios
named `broken_*` leave out one thing without which the result depends on the number of processes.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mirage import MIRAGE, ModelConfig
from mirage.collective import BatchShare
from mirage.loss import LossWeights, restoration_loss

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2), drop_path=0.3)
WEIGHTS = LossWeights(spd=1.0)
SCENARIOS = (
    "whole",
    "ddp",
    "checkpointed",
    "broken_batch_norm",
    "broken_negatives",
    "broken_drop_path",
    "broken_weighting",
)


def run(scenario: str, rank: int, sizes: list[int]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    share = BatchShare(sum(sizes[:rank]), sum(sizes))
    rows = slice(share.start, share.start + sizes[rank])
    clean = torch.rand(share.total, 3, 16, 24, dtype=torch.float64)
    degraded = clean + 0.1 * torch.randn_like(clean)
    keys = torch.arange(100, 100 + share.total)[rows]

    config = replace(CONFIG, batch_norm="local") if scenario == "broken_batch_norm" else CONFIG
    model = MIRAGE(config).double()
    wrapped = (
        DistributedDataParallel(model) if scenario in ("ddp", "checkpointed") and len(sizes) > 1 else model
    )
    if scenario == "checkpointed":
        model.checkpoint_activations("all")
    if scenario == "broken_drop_path":
        torch.manual_seed(1)
        keys = None
    output = wrapped(degraded[rows], keys)
    if scenario == "broken_negatives":
        loss = restoration_loss(output, clean[rows], WEIGHTS)
        loss = loss._replace(total=loss.total * sizes[rank] / share.total)
    elif scenario == "broken_weighting":
        loss = restoration_loss(output, clean[rows], replace(WEIGHTS, spd=0.0))
        loss = loss._replace(total=loss.total / len(sizes))
    else:
        loss = restoration_loss(output, clean[rows], WEIGHTS, share)
    # DDP averages gradients over processes; these losses are shares, to be summed.
    (loss.total * (len(sizes) if wrapped is not model else 1)).backward()

    found = {f"loss.{name}": value.detach() for name, value in loss.terms().items()}
    gradients = {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = over_processes({**found, **gradients} if wrapped is model else found, dist.ReduceOp.SUM)
    buffers = {f"buffer.{name}": b for name, b in model.named_buffers() if "running" in name}
    highest = over_processes(buffers, dist.ReduceOp.MAX)
    lowest = over_processes(buffers, dist.ReduceOp.MIN)
    spread = {f"spread.{name}": highest[name] - lowest[name] for name in buffers}
    return {**gradients, **buffers, **found, **spread}


def over_processes(values: dict[str, Tensor], operation: dist.ReduceOp.RedOpType) -> dict[str, Tensor]:
    packed = torch.cat([value.flatten() for value in values.values()])
    if dist.is_initialized():
        dist.all_reduce(packed, operation)
    parts = packed.split([value.numel() for value in values.values()])
    return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)}


def main(rank: int, sizes: list[int], rendezvous: str, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(sizes))
    results = {scenario: run(scenario, rank, sizes) for scenario in SCENARIOS}
    if rank == 0:
        torch.save(results, out)
    dist.barrier()  # no rank closes connections that another still uses
    dist.destroy_process_group()
