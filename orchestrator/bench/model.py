"""`mirage bench model`: speed, memory, parameters and multiply-adds of ours, the release and its peers."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mirage import MIRAGE, ModelConfig, cost
from mirage.compile import compile_blocks
from mirage.cuda_graphs import GraphedModel
from orchestrator.bench import networks, timing
from orchestrator.bench.environment import Setting
from orchestrator.bench.errors import BenchError
from orchestrator.bench.networks import Subject

Say = Callable[[str], object]


def run(options: argparse.Namespace, setting: Setting, say: Say) -> dict[str, Any]:
    """Measure, print one table, return the figures."""
    torch.manual_seed(options.seed)
    entrants = []
    if options.release is not None:
        entrants.append(networks.release(options.release, options.size))
    if options.align > 1 and options.what != "infer":
        raise BenchError(f"--align {options.align}: padded weights are for inference. Add --what infer.")
    entrants.append(networks.ours(options.size, options.recompute, options.align))
    entrants += [networks.peer(argument) for argument in options.peer]
    if options.graphs:
        entrants = [_graphed(subject) for subject in entrants]
    shape = (options.batch, 3, options.crop, options.crop)
    degraded, clean = (torch.rand(shape, device=setting.device) for _ in range(2))
    rows: list[dict[str, Any]] = []
    for subject in entrants:
        subject.model.to(setting.device)
        rows.append({"name": subject.name, **_counts(subject, options, degraded[:1])})
    compiled = _compile(entrants) if options.compile else []

    clock = timing.gpu_seconds if setting.device.type == "cuda" else timing.cpu_seconds
    for what in ("infer", "train") if options.what == "both" else (options.what,):
        runs = {}
        for subject, row in zip(entrants, rows, strict=True):
            subject.model.train(what == "train")
            step = _train_step(subject, degraded, clean, options, setting)
            runs[subject.name] = step if what == "train" else _inference(subject, degraded, options, setting)
            if subject.name in compiled:
                start = time.perf_counter()
                runs[subject.name]()
                row[f"{what}_compile_s"] = time.perf_counter() - start
            if what == "train":
                row["kept_mib"] = _kept_bytes(subject, degraded[:1], clean[:1], options, setting) / 2**20
                if setting.device.type == "cuda":
                    row["train_peak_mib"] = _peak_bytes(step) / 2**20
        times = timing.interleaved(runs, options.repeats, clock)
        reference = times[entrants[0].name]
        for row in rows:
            found = timing.ratio(reference, times[row["name"]])
            row[f"{what}_s"] = statistics.median(times[row["name"]])
            row[f"{what}_ratio"] = [found.median, found.low, found.high]
    _say_table(rows, options, compiled, say)
    return {"compiled": compiled, "rows": rows}


def _counts(subject: Subject, options: argparse.Namespace, one: Tensor) -> dict[str, float]:
    """Parameters, and GMACs of one 224 x 224 image: counted by torch, or for ours by `mirage.cost`."""
    parameters = sum(p.numel() for p in subject.model.parameters())
    if subject.name.startswith("ours"):  # the counter does not see into our operators
        config: ModelConfig = getattr(ModelConfig, options.size)()
        plain, fast = cost.macs(config, 224, 224), cost.fast_macs(config, 224, 224)
        parameters = cost.parameters(config)  # without padding
        return {"parameters": parameters, "gmacs": plain / 1e9, "gmacs_as_run": fast / 1e9}
    subject.model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.restored(one.new_zeros(1, 3, 224, 224))
    return {"parameters": parameters, "gmacs": counter.get_total_flops() / 2e9}


def _compile(entrants: list[Subject]) -> list[str]:
    """Compile the blocks of every subject that has some in place; return the names, none where nothing compiles."""
    return [
        subject.name
        for subject in entrants
        if subject.block is not None and compile_blocks(subject.model, subject.block)
    ]


def _graphed(subject: Subject) -> Subject:
    """Inference of a model of ours replayed from CUDA graphs; the others stay as they are."""
    if not isinstance(subject.model, MIRAGE):
        return subject
    return replace(subject, name=f"{subject.name} graphs", restored=GraphedModel(subject.model))


def _inference(
    subject: Subject, degraded: Tensor, options: argparse.Namespace, setting: Setting
) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), setting.autocast(options.precision):
            subject.restored(degraded)

    return run


def _train_step(
    subject: Subject, degraded: Tensor, clean: Tensor, options: argparse.Namespace, setting: Setting
) -> Callable[[], None]:
    """Forward, loss, backward, AdamW."""
    optimizer = adamw(subject.model)

    def run() -> None:
        with setting.autocast(options.precision):
            loss = subject.loss(degraded, clean)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def adamw(model: nn.Module, learning_rate: float = 2e-4, *, fused: bool = False) -> torch.optim.Optimizer:
    """AdamW as the release configures it."""
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=fused)


def _kept_bytes(
    subject: Subject, degraded: Tensor, clean: Tensor, options: argparse.Namespace, setting: Setting
) -> int:
    """Bytes that autograd keeps for the backward pass of one image, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in subject.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), setting.autocast(options.precision):
        subject.loss(degraded, clean)
    return sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)


def _peak_bytes(step: Callable[[], None]) -> int:
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def _say_table(
    rows: list[dict[str, Any]], options: argparse.Namespace, compiled: list[str], say: Say
) -> None:
    reference = rows[0]["name"]
    say(
        f"{options.batch} images of {options.crop} x {options.crop}, {options.precision}, "
        f"{'compiled: ' + ', '.join(compiled) if compiled else 'eager'}; ratios are times of {reference} over times of "
        f"the row, the median of {options.repeats} paired runs with its quartiles; kept: for backward, per image"
    )
    say(
        f"{'':<16}{'parameters':>12}{'GMACs 224':>11}"
        f"{'inference':>11}{'ratio':>20}{'training':>11}{'ratio':>20}{'kept':>11}"
    )
    for row in rows:
        cells = [f"{row['name']:<16}{row['parameters']:>12,}{row['gmacs']:>11.2f}"]
        for what in ("infer", "train"):
            if f"{what}_s" not in row:
                cells.append(f"{'-':>11}{'-':>20}")
                continue
            median, low, high = row[f"{what}_ratio"]
            cells.append(f"{row[f'{what}_s']:>9.3f} s{f'{median:.2f} ({low:.2f}-{high:.2f})':>20}")
        cells.append(f"{row['kept_mib']:>7.0f} MiB" if "kept_mib" in row else f"{'-':>11}")
        say("".join(cells))
    for row in rows:
        for what in ("infer", "train"):
            if f"{what}_compile_s" in row:
                say(f"compiling {row['name']} ({what}): {row[f'{what}_compile_s']:.0f} s")
