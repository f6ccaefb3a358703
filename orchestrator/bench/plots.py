"""The figure of `mirage bench scaling`: measured points and simulated lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.bench.scaling_worker import ScalingRow
from orchestrator.planning.scaling_model import ScalingPoint, efficiency


def draw(
    path: Path,
    rows: Sequence[ScalingRow],
    curves: Mapping[str, Sequence[ScalingPoint]],
    batch: int,
    preemptions_per_hour: float,
) -> None:
    """Write the figure as PNG: strong scaling on the left, weak on the right. `rows` may be empty."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    if rows:
        measured = [(row.workers, rows[0].step / (row.workers * row.step)) for row in rows]
        label = f"measured: this machine, batch {batch}"
        left.plot(*zip(*measured, strict=True), "o", color="black", label=label)
    _line(left, curves["strong"], curves["strong"][0], "simulated: assumed GPUs, batch 32", "tab:blue")
    left.set(title="strong scaling: one batch, shared", xlabel="workers", ylabel="efficiency")
    _line(right, curves["weak"], curves["weak"][0], "simulated: no preemptions", "tab:blue")
    spot = f"simulated: {preemptions_per_hour:g} preemptions per hour and worker"
    _line(right, curves["weak, preempted"], curves["weak"][0], spot, "tab:red")
    right.set(title="weak scaling: 32 images each, learning rate by rule", xlabel="workers")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _line(axes: Any, points: Sequence[ScalingPoint], one: ScalingPoint, label: str, color: str) -> None:
    values = [(point.workers, efficiency(point, one)) for point in points]
    axes.plot(*zip(*values, strict=True), "-", color=color, label=label)
