"""`mirage bench scaling`: what a step costs on 1, 2 and more workers, by cause, and what a model makes of it for many.

Measured: steps of the real model, loss and engine on real photographs, by real processes that talk through gloo (NCCL
on GPUs). From them come the parameters of `orchestrator.planning.scaling_model`: seconds of a step and of an image,
the latency and
bandwidth of a message, the spread between steps. Simulated: everything beyond the workers that were there.
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mirage import ModelConfig
from mirage.cost import parameters
from orchestrator.bench.environment import Setting
from orchestrator.bench.errors import BenchError
from orchestrator.bench.plots import Row
from orchestrator.bench.scaling_worker import DEGRADATIONS, Task, Times
from orchestrator.config.schedule import lr_scale
from orchestrator.planning.scaling_model import (
    CheckpointPolicy,
    Network,
    ScalingPoint,
    StepCost,
    WorkerSpeed,
    best_checkpoint_steps,
    efficiency,
    predict,
    strong,
    weak,
)
from shards.pack import pack
from shards.sources import PhotographSource
from shards.store import LocalStore

Say = Callable[[str], object]

DEMO = ModelConfig(dim=12, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 2, 2))
STRONG = (1, 2, 4, 8, 16, 32)
WEAK = tuple(2**n for n in range(13))
TIMEOUT_SECONDS = 1800

GPU = WorkerSpeed(step_seconds=0.005, image_seconds=1 / 400, spread=0.02)
LINKS = Network(latency_seconds=50e-6, bytes_per_second=25e9 / 8)
"""Assumed, not measured: 400 crops of 128² a second of T in fp32, 2 % spread; 50 µs and 25 Gbit/s between workers."""


def run(options: argparse.Namespace, setting: Setting, say: Say) -> dict[str, Any]:
    """Measure, fit, predict, and draw where asked."""
    config = DEMO if options.size == "demo" else getattr(ModelConfig, options.size)()
    counts = options.workers or _counts(setting.device.type)
    if max(counts) > options.batch:
        raise BenchError(f"--workers {max(counts)}: more than the {options.batch} images of --batch.")
    if setting.device.type == "cuda" and max(counts) > torch.cuda.device_count():
        raise BenchError(f"--workers {max(counts)}: there are {torch.cuda.device_count()} GPUs.")
    rows = measure_all(config, counts, options, setting, say)
    load = StepCost(
        parameters=parameters(config),
        blocks=sum(stage.blocks for stage in config.stages()),
        norm_channels=config.dim,
        embedding=2 * config.spd_embed_dim,
    )
    machine, network = fit(rows, load)
    say(measured_table(rows, options.batch))
    say(fitted(rows, load, machine, network, options.batch))
    habits = CheckpointPolicy(options.checkpoint_steps, options.checkpoint_seconds, options.restart_seconds)
    curves = simulate(load, options.preemptions_per_hour, habits)
    for text in tables(curves, options, habits):
        say(text)
    if options.figure:
        from orchestrator.bench.plots import draw

        draw(options.figure, rows, curves, options.batch, options.preemptions_per_hour)
        say(f"figure     {options.figure}")
    return {
        "rows": [asdict(row) for row in rows],
        "machine": asdict(machine),
        "network": asdict(network),
        "curves": {name: [asdict(point) for point in points] for name, points in curves.items()},
    }


# --- measured ------------------------------------------------------------------------------------------------


def measure_all(
    config: ModelConfig, counts: Sequence[int], options: argparse.Namespace, where: Setting, say: Say
) -> list[Row]:
    """Return one row for each number of workers."""
    with tempfile.TemporaryDirectory(prefix="mirage-scaling-") as folder:
        data = Path(folder) / "photographs"
        pack(PhotographSource(DEGRADATIONS, seed=0, variants=1), LocalStore(data), name="photographs")
        rows = []
        for workers in counts:
            say(f"measuring {workers} worker{'' if workers == 1 else 's'} …")
            own = Path(folder) / str(workers)
            own.mkdir()
            task = Task(
                config=config.to_dict(),
                workers=workers,
                batch=options.batch,
                crop=options.crop,
                steps=options.steps,
                threads=where.threads,
                device=where.device.type,
                data=str(data),
                folder=str(own),
            )
            rows.append(_row(task, _measure(task)))
    return rows


def _measure(task: Task) -> list[Times]:
    file = Path(task.folder) / "task.json"
    file.write_text(json.dumps(asdict(task)))
    command = [
        sys.executable,
        "-W",
        "ignore::FutureWarning",
        "-m",
        "orchestrator.bench.scaling_worker",
        str(file),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads), "OMP_WAIT_POLICY": "passive"}
    outputs = [open(Path(task.folder) / f"{rank}.json", "w+") for rank in range(task.workers)]  # noqa: SIM115
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
        raise BenchError(f"{task.workers} workers: one ended with status {next(s for s in statuses if s)}.")
    return [Times(**json.loads(Path(out.name).read_text())) for out in outputs]


def _row(task: Task, times: list[Times]) -> Row:
    """A group is as fast as its slowest worker: what all wait for is computing there and talking elsewhere."""
    compute = max(statistics.median(t.alone) for t in times)
    together = max(statistics.median(t.together) for t in times)
    return Row(
        workers=task.workers,
        share=math.ceil(task.batch / task.workers),
        compute=compute,
        communication=max(0.0, together - compute) if task.workers > 1 else 0.0,
        data=max(statistics.median(t.data) for t in times),
        spread=statistics.fmean(statistics.pstdev(t.alone) / statistics.fmean(t.alone) for t in times),
        gradients=max(t.gradients for t in times),
        small=max(t.small for t in times),
    )


def fit(rows: Sequence[Row], load: StepCost) -> tuple[WorkerSpeed, Network]:
    """Return the model's parameters that the rows give; of one row, what it can give.

    Time is linear in a worker's images. A message's latency is that of the small reductions, the bandwidth what the
    gradients' reduction takes beyond its latencies.
    """
    first, last = rows[0], rows[-1]
    image, fixed = first.compute / first.share, 0.0
    if last.share < first.share:
        slope = (first.compute - last.compute) / (first.share - last.share)
        if (
            0 < slope < image
        ):  # else other work on the machine, or workers in each other's way, hide the fixed part
            image, fixed = slope, first.compute - slope * first.share
    machine = WorkerSpeed(
        step_seconds=fixed,
        image_seconds=image,
        data_seconds=first.data / first.share,
        spread=statistics.fmean(row.spread for row in rows),
    )
    if last.workers == 1:
        return machine, LINKS
    latency = last.small / (2 * math.ceil(math.log2(last.workers)))
    messages = 2 * (last.workers - 1)
    moving = max(last.gradients - messages * latency, 1e-9)
    return machine, Network(latency, messages / last.workers * 4 * load.parameters / moving)


# --- simulated -----------------------------------------------------------------------------------------------


def simulate(
    load: StepCost, preemptions_per_hour: float, habits: CheckpointPolicy
) -> dict[str, list[ScalingPoint]]:
    """Return the curves of assumed GPUs: batch 32 shared by 1 to 32, and 32 images each on 1 to 4,096."""
    spot = replace(GPU, preemptions_per_hour=preemptions_per_hour)
    preempted = []
    for calm in weak(WEAK, 32, load, GPU, LINKS, habits):
        rate = calm.workers * preemptions_per_hour / 3600
        often = (
            best_checkpoint_steps(calm.step, rate, habits.checkpoint_seconds)
            if rate
            else habits.checkpoint_steps
        )
        fitting = replace(habits, checkpoint_steps=min(often, habits.checkpoint_steps))
        preempted.append(predict(calm.workers, calm.global_batch, load, spot, LINKS, fitting))
    return {
        "strong": strong(STRONG, 32, load, GPU, LINKS, habits),
        "weak": weak(WEAK, 32, load, GPU, LINKS, habits),
        "weak, preempted": preempted,
    }


# --- told ----------------------------------------------------------------------------------------------------


def measured_table(rows: Sequence[Row], batch: int) -> str:
    """Return the measured rows: efficiency is what a worker yields over what one alone yields."""
    lines = [
        f"measured, {batch} images a step:",
        "workers  images each   s/step   compute     data   talking  images/s  efficiency",
    ]
    for row in rows:
        share = rows[0].step / (row.workers * row.step)
        lines.append(
            f"{row.workers:>7}  {row.share:>11}  {row.step:>7.3f}  {row.compute:>8.3f}  {row.data:>7.3f}  "
            f"{row.communication:>8.3f}  {batch / row.step:>8.2f}  {100 * share:>8.1f} %"
        )
    return "\n".join(lines)


def fitted(rows: Sequence[Row], load: StepCost, machine: WorkerSpeed, network: Network, batch: int) -> str:
    """Return the parameters, and what the model says of the last measured row from its collectives alone."""
    last = rows[-1]
    lines = [
        f"fitted     {1e3 * machine.step_seconds:.1f} ms a step + {1e3 * machine.image_seconds:.1f} ms an image, "
        f"spread {100 * machine.spread:.1f} %"
    ]
    if last.workers > 1:
        point = predict(last.workers, batch, load, machine, network)
        lines[0] += (
            f"; {1e6 * network.latency_seconds:.0f} µs a message, {network.bytes_per_second / 2**30:.2f} GiB/s"
        )
        lines.append(
            f"           the model's talking on {last.workers} workers: {point.communication:.3f} s "
            f"({point.gradients:.3f} gradients, {point.norms:.3f} norms, {point.negatives:.3f} negatives), "
            f"measured {last.communication:.3f} s; its waiting for the slowest: {point.straggling:.3f} s"
        )
    return "\n".join(lines)


def tables(
    curves: dict[str, list[ScalingPoint]], options: argparse.Namespace, habits: CheckpointPolicy
) -> list[str]:
    """Return the simulated curves as text."""
    assumed = (
        f"simulated on assumed GPUs ({1 / GPU.image_seconds:.0f} images/s, {1e6 * LINKS.latency_seconds:.0f} µs, "
        f"{8 * LINKS.bytes_per_second / 1e9:.0f} Gbit/s, spread {100 * GPU.spread:.0f} %; checkpoint every "
        f"{habits.checkpoint_steps} steps, restart {habits.restart_seconds:.0f} s)"
    )
    found = [f"\n{assumed}", "strong scaling, batch 32: rate as published"]
    found.append(_curve(curves["strong"], curves["strong"]))
    found.append(
        f"weak scaling, 32 images each: train.lr_scaling {options.rate_rule}; without preemptions, and with"
    )
    found.append(
        f"{options.preemptions_per_hour:g} an hour and worker, which restart all, with checkpoints as often as is best"
    )
    found.append(_curve(curves["weak"], curves["weak, preempted"], options.rate_rule))
    return found


def _curve(calm: Sequence[ScalingPoint], preempted: Sequence[ScalingPoint], rule: str | None = None) -> str:
    lines = [
        "workers   batch  s/step  talking  waiting  efficiency" + ("  preempted    rate" if rule else "")
    ]
    for point, other in zip(calm, preempted, strict=True):
        line = (
            f"{point.workers:>7}  {point.global_batch:>6,}  {point.step:>6.3f}  "
            f"{100 * point.communication / point.step:>5.1f} %  {100 * point.straggling / point.step:>5.1f} %  "
            f"{100 * efficiency(point, calm[0]):>8.1f} %"
        )
        if rule:
            factor = lr_scale(rule, point.global_batch)  # type: ignore[arg-type]
            line += f"  {100 * efficiency(other, calm[0]):>7.1f} %  x {factor:<6.4g}"
        lines.append(line)
    return "\n".join(lines)


def _counts(device: str) -> tuple[int, ...]:
    """1, 2, 4 … as there are cores or GPUs."""
    there = torch.cuda.device_count() if device == "cuda" else len(os.sched_getaffinity(0))
    return tuple(2**n for n in range(max(1, there).bit_length()))
