"""`mirage bench scaling`: the time of a step on several workers by cause, and a model of it for many more.

Measured: steps of the real model, loss and engine on real photographs, by processes that communicate through gloo (NCCL
on GPUs). They give the parameters of `orchestrator.planning.scaling_model`: seconds of a step and of an image, latency
and bandwidth of a message, and the spread between steps. Everything beyond the available workers is simulated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mirage import ModelConfig
from mirage.cost import parameters
from orchestrator.bench.environment import Echo, Environment
from orchestrator.bench.errors import BenchError
from orchestrator.bench.scaling_worker import DEGRADATIONS, ScalingRow, ScalingSpec, WorkerTimes
from orchestrator.config.schedule import lr_scale
from orchestrator.console import count
from orchestrator.planning.estimate import ASSUMED_NETWORK
from orchestrator.planning.scaling_model import (
    CheckpointPolicy,
    Network,
    ScalingPoint,
    StepCost,
    WorkerSpeed,
    best_checkpoint_steps,
    efficiency,
    predict,
)
from orchestrator.tables import aligned
from shards.pack import pack
from shards.sources import PhotographSource
from shards.store import LocalStore

DEMO = ModelConfig(dim=12, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 2, 2))
STRONG = (1, 2, 4, 8, 16, 32)
WEAK = tuple(2**n for n in range(13))
TIMEOUT_SECONDS = 1800

ASSUMED_GPU = WorkerSpeed(step_seconds=0.005, image_seconds=1 / 400, spread=0.02)
"""Assumed, not measured: 400 crops of 128² a second of T in fp32, 2 % spread."""


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Measure, fit the model, predict, and draw the figure if requested."""
    config = DEMO if options.size == "demo" else getattr(ModelConfig, options.size)()
    counts = options.workers or _worker_counts(environment.device.type)
    if max(counts) > options.batch:
        raise BenchError(f"--workers {max(counts)}: more than the {options.batch} images of --batch.")
    if environment.device.type == "cuda" and max(counts) > torch.cuda.device_count():
        raise BenchError(f"--workers {max(counts)}: there are {torch.cuda.device_count()} GPUs.")
    rows = measure_all(config, counts, options, environment, echo)
    cost = StepCost(
        parameters=parameters(config),
        blocks=sum(stage.blocks for stage in config.stages()),
        norm_channels=config.dim,
        embedding=2 * config.spd_embed_dim,
    )
    speed, network = fit(rows, cost)
    policy = CheckpointPolicy(options.checkpoint_steps, options.checkpoint_seconds, options.restart_seconds)
    curves = simulate(cost, options.preemptions_per_hour, policy)
    echo(measured_table(rows, options.batch))
    echo(fitted_parameters(rows, cost, speed, network, options.batch))
    echo(simulated_tables(curves, options, policy))
    if options.figure:
        from orchestrator.bench.plots import draw

        draw(options.figure, rows, curves, options.batch, options.preemptions_per_hour)
        echo(f"figure     {options.figure}")
    return {
        "rows": [asdict(row) for row in rows],
        "machine": asdict(speed),
        "network": asdict(network),
        "curves": {name: [asdict(point) for point in points] for name, points in curves.items()},
    }


def _worker_counts(device: str) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to the number of cores or GPUs."""
    there = torch.cuda.device_count() if device == "cuda" else len(os.sched_getaffinity(0))
    return tuple(2**n for n in range(max(1, there).bit_length()))


def measure_all(
    config: ModelConfig,
    counts: Sequence[int],
    options: argparse.Namespace,
    environment: Environment,
    echo: Echo,
) -> list[ScalingRow]:
    """Return one row per number of workers."""
    with tempfile.TemporaryDirectory(prefix="mirage-scaling-") as folder:
        data = Path(folder) / "photographs"
        pack(PhotographSource(DEGRADATIONS, seed=0, variants=1), LocalStore(data), name="photographs")
        rows = []
        for workers in counts:
            echo(f"measuring {count(workers, 'worker')}")
            group = Path(folder) / str(workers)
            group.mkdir()
            spec = ScalingSpec(
                config=config.to_dict(),
                workers=workers,
                batch=options.batch,
                crop=options.crop,
                steps=options.steps,
                threads=environment.threads,
                device=environment.device.type,
                data=str(data),
                folder=str(group),
            )
            rows.append(_row(spec, _measure(spec)))
    return rows


def _measure(spec: ScalingSpec) -> list[WorkerTimes]:
    """Run a group of workers; return the times of each."""
    file = Path(spec.folder) / "spec.json"
    file.write_text(json.dumps(asdict(spec)))
    module = "orchestrator.bench.scaling_worker"
    command = [sys.executable, "-W", "ignore::FutureWarning", "-m", module, str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(spec.threads), "OMP_WAIT_POLICY": "passive"}
    outputs = [open(Path(spec.folder) / f"{rank}.json", "w+") for rank in range(spec.workers)]  # noqa: SIM115
    workers = [
        subprocess.Popen([*command, str(rank)], stdout=out, env=environment)
        for rank, out in enumerate(outputs)
    ]
    try:
        statuses = [worker.wait(TIMEOUT_SECONDS) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        for out in outputs:
            out.close()
    if any(statuses):
        raise BenchError(f"{spec.workers} workers: one ended with status {next(s for s in statuses if s)}.")
    return [WorkerTimes(**json.loads(Path(out.name).read_text())) for out in outputs]


def _row(spec: ScalingSpec, times: list[WorkerTimes]) -> ScalingRow:
    """Return the times of the slowest worker, which the others wait for."""
    compute = max(statistics.median(t.alone) for t in times)
    together = max(statistics.median(t.together) for t in times)
    return ScalingRow(
        workers=spec.workers,
        share=math.ceil(spec.batch / spec.workers),
        compute=compute,
        communication=max(0.0, together - compute) if spec.workers > 1 else 0.0,
        data=max(statistics.median(t.data) for t in times),
        spread=statistics.fmean(statistics.pstdev(t.alone) / statistics.fmean(t.alone) for t in times),
        gradients=max(t.gradients for t in times),
        small=max(t.small for t in times),
    )


def fit(rows: Sequence[ScalingRow], cost: StepCost) -> tuple[WorkerSpeed, Network]:
    """Return the parameters of the scaling model; a single row gives those that it can.

    Time is linear in a worker's images. The latency of a message comes from the small reductions, the bandwidth from
    the time of the gradients' reduction beyond its latencies.
    """
    first, last = rows[0], rows[-1]
    image, fixed = first.compute / first.share, 0.0
    if last.share < first.share:
        slope = (first.compute - last.compute) / (first.share - last.share)
        if 0 < slope < image:  # else other load on the machine hides the fixed part
            image, fixed = slope, first.compute - slope * first.share
    speed = WorkerSpeed(
        step_seconds=fixed,
        image_seconds=image,
        data_seconds=first.data / first.share,
        spread=statistics.fmean(row.spread for row in rows),
    )
    if last.workers == 1:
        return speed, ASSUMED_NETWORK
    latency = last.small / (2 * math.ceil(math.log2(last.workers)))
    messages = 2 * (last.workers - 1)
    moving = max(last.gradients - messages * latency, 1e-9)
    return speed, Network(latency, messages / last.workers * 4 * cost.parameters / moving)


def simulate(
    cost: StepCost, preemptions_per_hour: float, policy: CheckpointPolicy
) -> dict[str, list[ScalingPoint]]:
    """Return the curves of assumed GPUs: batch 32 shared by 1 to 32, and 32 images each on 1 to 4,096."""
    without = [predict(n, 32 * n, cost, ASSUMED_GPU, ASSUMED_NETWORK, policy) for n in WEAK]
    spot = replace(ASSUMED_GPU, preemptions_per_hour=preemptions_per_hour)
    preempted = []
    for point in without:
        per_second = point.workers * preemptions_per_hour / 3600
        steps = policy.checkpoint_steps
        if per_second:
            steps = min(steps, best_checkpoint_steps(point.step, per_second, policy.checkpoint_seconds))
        best = replace(policy, checkpoint_steps=steps)
        preempted.append(predict(point.workers, point.global_batch, cost, spot, ASSUMED_NETWORK, best))
    return {
        "strong": [predict(n, 32, cost, ASSUMED_GPU, ASSUMED_NETWORK, policy) for n in STRONG],
        "weak": without,
        "weak, preempted": preempted,
    }


def measured_table(rows: Sequence[ScalingRow], batch: int) -> str:
    """Return the measured rows as text; efficiency is the throughput per worker over that of one worker."""
    head = (
        *("workers", "images each", "s/step", "compute", "data"),
        *("communication", "images/s", "efficiency"),
    )
    cells = [
        (
            str(row.workers),
            str(row.share),
            *(f"{seconds:.3f}" for seconds in (row.step, row.compute, row.data, row.communication)),
            f"{batch / row.step:.2f}",
            f"{100 * rows[0].step / (row.workers * row.step):.1f} %",
        )
        for row in rows
    ]
    return "\n".join([f"measured, {batch} images per step:", *aligned(head, cells, ">" * len(head))])


def fitted_parameters(
    rows: Sequence[ScalingRow], cost: StepCost, speed: WorkerSpeed, network: Network, batch: int
) -> str:
    """Return the fitted parameters, and the model's prediction for the last measured row."""
    last = rows[-1]
    text = (
        f"fitted     {1e3 * speed.step_seconds:.1f} ms per step + {1e3 * speed.image_seconds:.1f} ms per image, "
        f"spread {100 * speed.spread:.1f} %"
    )
    if last.workers == 1:
        return text
    point = predict(last.workers, batch, cost, speed, network)
    return (
        f"{text}; {1e6 * network.latency_seconds:.0f} µs per message, {network.bytes_per_second / 2**30:.2f} GiB/s\n"
        f"           predicted communication on {last.workers} workers: {point.communication:.3f} s "
        f"({point.gradients:.3f} gradients, {point.norms:.3f} norms, {point.negatives:.3f} negatives), "
        f"measured {last.communication:.3f} s; predicted wait for the slowest: {point.straggling:.3f} s"
    )


def simulated_tables(
    curves: dict[str, list[ScalingPoint]], options: argparse.Namespace, policy: CheckpointPolicy
) -> str:
    """Return the simulated curves as text."""
    return "\n".join(
        [
            f"\nsimulated on assumed GPUs ({1 / ASSUMED_GPU.image_seconds:.0f} images/s, "
            f"{1e6 * ASSUMED_NETWORK.latency_seconds:.0f} µs, "
            f"{8 * ASSUMED_NETWORK.bytes_per_second / 1e9:.0f} Gbit/s, spread {100 * ASSUMED_GPU.spread:.0f} %; "
            f"checkpoint every {policy.checkpoint_steps} steps, restart {policy.restart_seconds:.0f} s)",
            "strong scaling, batch 32, learning rate as published",
            *_curve(curves["strong"], curves["strong"]),
            f"weak scaling, 32 images each, train.lr_scaling {options.lr_scaling}. preempted:",
            f"{options.preemptions_per_hour:g} preemptions per hour and worker, each of which restarts all workers, "
            "with the best checkpoint interval",
            *_curve(curves["weak"], curves["weak, preempted"], options.lr_scaling),
        ]
    )


def _curve(
    without: Sequence[ScalingPoint], preempted: Sequence[ScalingPoint], rule: str | None = None
) -> list[str]:
    head = ["workers", "batch", "s/step", "communication", "waiting", "efficiency"]
    head += ["preempted", "learning rate"] if rule else []
    rows = []
    for point, other in zip(without, preempted, strict=True):
        row = [
            str(point.workers),
            f"{point.global_batch:,}",
            f"{point.step:.3f}",
            f"{100 * point.communication / point.step:.1f} %",
            f"{100 * point.straggling / point.step:.1f} %",
            f"{100 * efficiency(point, without[0]):.1f} %",
        ]
        if rule:
            factor = lr_scale(rule, point.global_batch)  # type: ignore[arg-type]
            row += [f"{100 * efficiency(other, without[0]):.1f} %", f"x {factor:.4g}"]
        rows.append(row)
    return aligned(head, rows, ">" * len(head))
