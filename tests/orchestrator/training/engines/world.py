"""One process of the engine tests, of as many as there are shares.

Trains the same 8 images for up to 20 steps in every scenario; rank 0 writes losses, first gradient norms and weights.
In scenarios `broken_*` one thing is left out that makes the objective depend on the global batch alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mirage import MIRAGE, ModelConfig
from mirage.collective import BatchShare
from mirage.loss import LossWeights, restoration_loss
from orchestrator.training.engines.base import Engine
from orchestrator.training.engines.ddp import DDPEngine

CPU = torch.device("cpu")
STEPS = 20
CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 2, 2), drop_path=0.3)
WEIGHTS = LossWeights(spd=0.5)


@dataclass(frozen=True)
class Scenario:
    """What is run, and in which numbers."""

    engine: str
    dtype: torch.dtype = torch.float64
    micro_batches: int = 1
    clip_norm: float | None = None
    precision: str = "fp32"
    steps: int = STEPS
    broken: str = ""
    nan_at: int | None = None
    """Step at which the last worker's share of the batch holds a NaN."""


SCENARIOS = {
    "ddp": Scenario("ddp"),
    "ddp, 2 micro-batches": Scenario("ddp", micro_batches=2, steps=6),
    "broken batch norm": Scenario("ddp", steps=2, broken="batch norm"),
    "broken negatives": Scenario("ddp", steps=2, broken="negatives"),
    "broken drop path": Scenario("ddp", steps=2, broken="drop path"),
    "ddp, fp32": Scenario("ddp", torch.float32),
    "ddp, fp32, 2 micro-batches": Scenario("ddp", torch.float32, 2, steps=6),
    "ddp, fp32, clipped": Scenario("ddp", torch.float32, clip_norm=0.05, steps=6),
    **{f"zero {stage}": Scenario(f"zero {stage}", torch.float32) for stage in (1, 3)},
    **{f"zero {stage}": Scenario(f"zero {stage}", torch.float32, steps=6) for stage in (0, 2)},
    "zero 2, 2 micro-batches": Scenario("zero 2", torch.float32, 2, steps=6),
    "zero 1, clipped": Scenario("zero 1", torch.float32, clip_norm=0.05, steps=6),
    **{
        f"{engine}, NaN": Scenario(engine, torch.float32, steps=6, nan_at=2)
        for engine in ("ddp", "zero 0", "zero 1", "zero 2", "zero 3")
    },
    **{
        f"{engine}, fp16": Scenario(engine, torch.float32, 1, 0.05, "fp16", steps=6)
        for engine in ("ddp", "zero 0", "zero 1", "zero 2", "zero 3")
    },
}


def engine_for(scenario: Scenario, world_size: int) -> Engine:
    if scenario.engine.startswith("zero"):
        from orchestrator.training.engines.deepspeed import DeepSpeedEngine

        stage = int(scenario.engine.split()[1])
        return DeepSpeedEngine(CPU, scenario.precision, stage, scenario.micro_batches, scenario.clip_norm)
    kind = Engine if world_size == 1 else DDPEngine
    return kind(CPU, scenario.precision)


def train(scenario: Scenario, rank: int, shares: list[int]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    total = sum(shares)
    share = BatchShare(sum(shares[:rank]), total)
    rows = slice(share.start, share.start + shares[rank])
    clean = torch.rand(scenario.micro_batches, total, 3, 16, 24, dtype=torch.float64).to(scenario.dtype)
    degraded = clean + 0.1 * torch.randn(clean.shape, dtype=torch.float64).to(scenario.dtype)
    config = replace(CONFIG, batch_norm="local") if scenario.broken == "batch norm" else CONFIG
    model = MIRAGE(config).to(scenario.dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    engine = engine_for(scenario, len(shares))
    if engine.loss_scale is not None:
        engine.loss_scale.factor.fill_(2.0**19)  # too large for half: steps are skipped until it fits
    called = engine.wrap(model, optimizer)
    losses, norms, scales, gradients = [], [], [], []
    for step in range(scenario.steps):
        model.train()
        loss_of_step = torch.zeros(())
        for i in range(scenario.micro_batches):
            last = i == scenario.micro_batches - 1
            keys: Tensor | None = 1000 * step + 100 * i + torch.arange(total)[rows]
            if scenario.broken == "drop path":
                torch.manual_seed(step)
                keys = torch.randint(2**40, (shares[rank],))
            shown = degraded[i, rows].clone()
            if step == scenario.nan_at and rank == len(shares) - 1:
                shown[-1, 0, 0, 0] = torch.nan
            with engine.sync(last=last):
                with engine.autocast():
                    output = called(shown, keys)
                if scenario.broken == "negatives":
                    loss = restoration_loss(output, clean[i, rows], WEIGHTS)
                    loss = loss._replace(total=loss.total * shares[rank] / total)
                else:
                    loss = restoration_loss(output, clean[i, rows], WEIGHTS, share)
                engine.backward(loss.total / scenario.micro_batches)
            loss_of_step = loss_of_step + loss.total.detach() / scenario.micro_batches
        losses.append(engine.all_reduce_sum(loss_of_step))
        gradients.append(sum(p.grad is not None for group in optimizer.param_groups for p in group["params"]))
        norms.append(engine.step(optimizer, scenario.clip_norm))
        scales.append(float(engine.loss_scale.factor) if engine.loss_scale else 1.0)
    with engine.full_params(model):
        after = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {
        "losses": torch.stack(losses),
        "norms": torch.stack(norms),
        "scales": torch.tensor(scales),
        "gradients": torch.tensor(gradients),
        "moved": torch.stack([(after[name] - before[name]).abs().max() for name in before]).max(),
        **{f"weight {name}": value for name, value in after.items()},
    }


def main(rank: int, shares: list[int], rendezvous: str, out: Path, scenarios: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(len(shares)))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(shares))
    results = {name: train(SCENARIOS[name], rank, shares) for name in scenarios}
    if rank == 0:
        torch.save(results, out)
    dist.destroy_process_group()
