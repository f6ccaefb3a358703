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
from mirage.cuda_graphs import WARM_UP, GraphedModel
from orchestrator.bench import networks, timing
from orchestrator.bench.environment import Echo, Environment
from orchestrator.bench.errors import BenchError
from orchestrator.bench.networks import BenchNetwork
from orchestrator.tables import aligned


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Measure, print one table, return the results."""
    torch.manual_seed(options.seed)
    candidates = _candidates(options)
    shape = (options.batch, 3, options.crop, options.crop)
    degraded, clean = (torch.rand(shape, device=environment.device) for _ in range(2))
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        candidate.model.to(environment.device)
        rows.append({"name": candidate.name, **_counts(candidate, options, degraded[:1])})
    compiled = _compile(candidates) if options.compile else []

    clock = timing.gpu_seconds if environment.device.type == "cuda" else timing.cpu_seconds
    for what in ("infer", "train") if options.what == "both" else (options.what,):
        runs = {}
        for candidate, row in zip(candidates, rows, strict=True):
            candidate.model.train(what == "train")
            if what == "train":
                step = _train_step(candidate, degraded, clean, options, environment)
            else:
                step = _inference(candidate, degraded, options, environment)
            runs[candidate.name] = step
            if candidate.name in compiled:
                start = time.perf_counter()
                step()
                row[f"{what}_compile_s"] = time.perf_counter() - start
            if what == "train":
                row["kept_mib"] = (
                    _saved_bytes(candidate, degraded[:1], clean[:1], options, environment) / 2**20
                )
                if environment.device.type == "cuda":
                    row["train_peak_mib"] = _peak_bytes(step) / 2**20
        times = timing.interleaved(runs, options.repeats, clock)
        for row in rows:
            found = timing.ratio(times[candidates[0].name], times[row["name"]])
            row[f"{what}_s"] = statistics.median(times[row["name"]])
            row[f"{what}_ratio"] = [found.median, found.low, found.high]
    _print_table(rows, options, compiled, echo)
    return {"compiled": compiled, "rows": rows}


def _candidates(options: argparse.Namespace) -> list[BenchNetwork]:
    if options.align > 1 and options.what != "infer":
        raise BenchError(f"--align {options.align}: padded weights are for inference. Add --what infer.")
    reference = [] if options.release is None else [networks.release(options.release, options.size)]
    candidates = [
        *reference,
        networks.ours(options.size, options.activation_checkpointing, options.align),
        *(networks.peer(argument) for argument in options.peer),
    ]
    return [_graphed(candidate) for candidate in candidates] if options.graphs else candidates


def _counts(candidate: BenchNetwork, options: argparse.Namespace, one: Tensor) -> dict[str, float]:
    """Return parameters, and GMACs of one 224 x 224 image: counted by torch, or for ours by `mirage.cost`."""
    parameters = sum(p.numel() for p in candidate.model.parameters())
    if candidate.name.startswith("ours"):  # torch's counter does not see into our operators
        config: ModelConfig = getattr(ModelConfig, options.size)()
        plain, fast = cost.macs(config, 224, 224), cost.fast_macs(config, 224, 224)
        parameters = cost.parameters(config)  # without padding
        return {"parameters": parameters, "gmacs": plain / 1e9, "gmacs_as_run": fast / 1e9}
    candidate.model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        candidate.infer(one.new_zeros(1, 3, 224, 224))
    return {"parameters": parameters, "gmacs": counter.get_total_flops() / 2e9}


def _compile(candidates: list[BenchNetwork]) -> list[str]:
    """Compile the blocks of the candidates in place, where there are any; return the names of those compiled."""
    return [
        candidate.name
        for candidate in candidates
        if candidate.block is not None and compile_blocks(candidate.model, candidate.block)
    ]


def _graphed(candidate: BenchNetwork) -> BenchNetwork:
    """Return the candidate with inference from CUDA graphs if it is a MIRAGE of ours."""
    if not isinstance(candidate.model, MIRAGE):
        return candidate
    return replace(candidate, name=f"{candidate.name} graphs", infer=GraphedModel(candidate.model))


def _inference(
    candidate: BenchNetwork, degraded: Tensor, options: argparse.Namespace, environment: Environment
) -> Callable[[], None]:
    def infer() -> None:
        with torch.inference_mode(), environment.autocast(options.precision):
            candidate.infer(degraded)

    return infer


def _train_step(
    candidate: BenchNetwork,
    degraded: Tensor,
    clean: Tensor,
    options: argparse.Namespace,
    environment: Environment,
) -> Callable[[], None]:
    """Return a function that runs forward, loss, backward and AdamW; with --graphs ours is replayed from one graph."""
    graphed = options.graphs and isinstance(candidate.model, MIRAGE) and environment.device.type == "cuda"
    optimizer = adamw(candidate.model, fused=graphed, capturable=graphed)

    def step() -> None:
        with environment.autocast(options.precision):
            loss = candidate.loss(degraded, clean)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _replayed(step) if graphed else step


def _replayed(step: Callable[[], None]) -> Callable[[], None]:
    """Record a training step as one CUDA graph, after three steps that choose algorithms; return its replay."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def adamw(
    model: nn.Module, learning_rate: float = 2e-4, *, fused: bool = False, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return AdamW as the release configures it: with multi-tensor kernels on a GPU."""
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=fused or None, capturable=capturable)


def _saved_bytes(
    candidate: BenchNetwork,
    degraded: Tensor,
    clean: Tensor,
    options: argparse.Namespace,
    environment: Environment,
) -> int:
    """Return the bytes that autograd saves for the backward pass of one image: each storage once, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in candidate.model.parameters()}
    saved: dict[int, Tensor] = {}

    def save(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x), environment.autocast(options.precision):
        candidate.loss(degraded, clean)
    return sum(x.untyped_storage().nbytes() for address, x in saved.items() if address not in weights)


def _peak_bytes(step: Callable[[], None]) -> int:
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def _print_table(
    rows: list[dict[str, Any]], options: argparse.Namespace, compiled: list[str], echo: Echo
) -> None:
    echo(
        f"{options.batch} images of {options.crop} x {options.crop}, {options.precision}, "
        f"{'compiled: ' + ', '.join(compiled) if compiled else 'eager'}; ratios are times of {rows[0]['name']} over "
        f"times of the row, the median of {options.repeats} paired runs with its quartiles; saved: activations for "
        "the backward pass, per image"
    )
    head = ("", "parameters", "GMACs 224", "inference", "ratio", "training", "ratio", "saved")
    cells = []
    for row in rows:
        timed = []
        for what in ("infer", "train"):
            there = f"{what}_s" in row
            timed += (
                [f"{row[f'{what}_s']:.3f} s", str(timing.Ratio(*row[f"{what}_ratio"]))]
                if there
                else ["-", "-"]
            )
        saved = f"{row['kept_mib']:.0f} MiB" if "kept_mib" in row else "-"
        cells.append((row["name"], f"{row['parameters']:,}", f"{row['gmacs']:.2f}", *timed, saved))
    echo("\n".join(aligned(head, cells, "<>>>>>>>")))
    for row in rows:
        for what in ("infer", "train"):
            if f"{what}_compile_s" in row:
                echo(f"compiling {row['name']} ({what}): {row[f'{what}_compile_s']:.0f} s")
