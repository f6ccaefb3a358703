"""The figure of `mirage bench scaling`: what was measured as points, what was simulated as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.planning.scaling_model import ScalingPoint, efficiency

if TYPE_CHECKING:
    pass

from dataclasses import dataclass


def draw(
    path: Path,
    rows: Sequence[Row],
    curves: Mapping[str, Sequence[ScalingPoint]],
    batch: int,
    preemptions_per_hour: float,
) -> None:
    """Write the figure as PNG: strong scaling on the left, weak on the right. Without rows nothing was measured."""
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
    _line(right, curves["weak"], curves["weak"][0], "simulated: never preempted", "tab:blue")
    spot = f"simulated: {preemptions_per_hour:g} preemptions an hour and worker"
    _line(right, curves["weak, preempted"], curves["weak"][0], spot, "tab:red")
    right.set(title="weak scaling: 32 images each, rate by rule", xlabel="workers")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize=8)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _line(axes: object, points: Sequence[ScalingPoint], one: ScalingPoint, label: str, color: str) -> None:
    values = [(point.workers, efficiency(point, one)) for point in points]
    axes.plot(*zip(*values, strict=True), "-", color=color, label=label)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Row:
    """What was measured on one number of workers: medians over steps of the slowest worker, in seconds."""

    workers: int
    share: int
    """Images of the largest share."""
    compute: float
    communication: float
    data: float
    spread: float
    gradients: float
    small: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.compute + self.communication + self.data
