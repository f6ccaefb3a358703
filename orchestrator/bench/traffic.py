"""`mirage bench traffic`: memory traffic, kernel launches and host synchronisations of a step, counted without a GPU.

A training step is the whole one: forward, loss with its Fourier and SPD terms, backward, clipping, optimiser and EMA.
Ours is the step of a job (`orchestrator.training.step`); the release and its peers run their own loss and AdamW.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mirage import MIRAGE, ModelConfig
from orchestrator.bench import fake_cuda, networks
from orchestrator.bench.environment import Echo, Environment
from orchestrator.bench.kernel_count import Count, counting
from orchestrator.bench.model import adamw
from orchestrator.bench.networks import BenchNetwork
from orchestrator.tables import aligned

ROWS = 12
"""Rows of each table by operator and by module."""


@dataclass(frozen=True)
class Machine:
    """What a prediction assumes."""

    bytes_per_second: float
    launch_seconds: float
    """Time of the host for one launch: Python, autograd and driver."""
    kernel_seconds: float = 2e-6
    """Least time of a kernel on the device."""
    flops: float = 60e12
    half_flops: float = 800e12

    def device_seconds(self, count: Count) -> float:
        """Return the time of the kernels one after the other: the longest of traffic, arithmetic and the least time."""
        return sum(
            max(
                k.launches * self.kernel_seconds,
                k.traffic / self.bytes_per_second,
                k.flops / (self.half_flops if k.half else self.flops),
            )
            for k in count.kernels
        )

    def eager_seconds(self, count: Count) -> float:
        """Return the time of a step that the host launches kernel by kernel."""
        return max(self.device_seconds(count), count.launches * self.launch_seconds)


class _Fake(FakeTensorMode):  # type: ignore[no-untyped-call]
    """The mode of fake tensors, which a copy of a model shares."""

    def __deepcopy__(self, _: object) -> _Fake:
        return self


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Count, print the tables, return the results."""
    fake_cuda.pretend()
    machine = Machine(options.bandwidth * 1e12, options.launch_us * 1e-6)
    rows = []
    for name, make in _makers(options).items():
        with _Fake(), torch.device("cuda"):
            count = _count(make(), options)
        rows.append(_row(name, count, machine, options.batch))
    _print(rows, options, echo)
    return {"rows": rows}


def _makers(options: argparse.Namespace) -> dict[str, Callable[[], BenchNetwork]]:
    made: dict[str, Callable[[], BenchNetwork]] = {}
    if options.release is not None:
        made[f"release {options.size}"] = lambda: networks.release(options.release, options.size)
    made[f"ours {options.size}{', compiled' if options.compile else ''}"] = lambda: _ours(options)
    for peer in options.peer:
        made[peer.partition("=")[0]] = partial(networks.peer, peer)
    return made


def _ours(options: argparse.Namespace) -> BenchNetwork:
    if options.blocks is None:
        return networks.ours(options.size)
    config: ModelConfig = getattr(ModelConfig, options.size)()
    n = options.blocks
    thin = replace(config, blocks=(n, n, n, n), refinement_blocks=n, drop_path=0.0)
    return networks.from_model(MIRAGE(thin), f"ours {options.size}, {n} of each block")


def _count(network: BenchNetwork, options: argparse.Namespace) -> Count:
    shape = (options.batch, 3, options.crop, options.crop)
    if options.what == "infer":
        step = _inference(network, torch.rand(shape), options.precision)
    elif isinstance(network.model, MIRAGE):
        step = _our_step(network.model, options)
    else:
        step = _their_step(network, torch.rand(shape), torch.rand(shape), options.precision)
    compiled = options.compile and isinstance(network.model, MIRAGE)
    if compiled:
        from orchestrator.bench import fake_inductor

        fake_inductor.compile_blocks(network.model)
    with counting(network.model, compiled):
        step()  # makes the optimiser's state and fills caches
    with counting(network.model, compiled) as count:
        step()
    return count


def _autocast(precision: str) -> Any:
    return torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16")


def _inference(network: BenchNetwork, degraded: Tensor, precision: str) -> Callable[[], None]:
    network.model.eval()

    def infer() -> None:
        with torch.no_grad(), _autocast(precision):
            network.infer(degraded)

    return infer


def _their_step(network: BenchNetwork, degraded: Tensor, clean: Tensor, precision: str) -> Callable[[], None]:
    network.model.train()
    optimizer = adamw(network.model)

    def step() -> None:
        with _autocast(precision):
            loss = network.loss(degraded, clean)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _our_step(model: MIRAGE, options: argparse.Namespace) -> Callable[[], None]:
    from orchestrator.bench.traffic_step import training_step

    return training_step(model, options.batch, options.crop, options.precision)


def _row(name: str, count: Count, machine: Machine, batch: int) -> dict[str, Any]:
    return {
        "name": name,
        "launches": count.launches,
        "bytes_per_image": count.traffic / batch,
        "flops_per_image": count.flops / batch,
        "synchronisations": count.synchronisations,
        "device_seconds": machine.device_seconds(count),
        "eager_seconds": machine.eager_seconds(count),
        "operators": count.by("name"),
        "modules": count.by("module"),
    }


def _print(rows: list[dict[str, Any]], options: argparse.Namespace, echo: Echo) -> None:
    echo(
        f"{options.what}, {options.batch} images of {options.crop} x {options.crop}, {options.precision}; predicted at "
        f"{options.bandwidth:g} TB/s and {options.launch_us:g} µs a launch"
    )
    head = ("", "GB an image", "launches", "synchronisations", "device", "eager")
    cells = [
        (
            row["name"],
            f"{row['bytes_per_image'] / 1e9:.3f}",
            f"{row['launches']:,}",
            str(len(row["synchronisations"])),
            f"{1e3 * row['device_seconds']:.1f} ms",
            f"{1e3 * row['eager_seconds']:.1f} ms",
        )
        for row in rows
    ]
    echo("\n".join(aligned(head, cells, "<>>>>>")))
    for row in rows:
        for key in ("operators", "modules"):
            found = list(row[key].items())
            top = [
                (name, f"{launches:,}", f"{size / options.batch / 1e9:.4f}")
                for name, (launches, size) in found[:ROWS]
            ]
            title = (f"{row['name']}, by {key[:-1]}", "launches", "GB an image")
            echo("")
            echo("\n".join(aligned(title, top, "<>>")))
        for line in dict.fromkeys(row["synchronisations"]):
            echo(f"{row['name']} waits for the device: {line}")
