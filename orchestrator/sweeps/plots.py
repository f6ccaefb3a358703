"""The pictures of a sweep's report, as SVG: Pareto fronts, importance, learning curves, compute."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mirage import ModelConfig
from mirage.cost import macs, parameters
from orchestrator.config.sweep_schema import SweepJob, rungs
from orchestrator.paper.tables import published_averages
from orchestrator.sweeps.importance import Importance, pareto_front
from orchestrator.sweeps.trial_table import TrialRow, TrialTable

_BLUE, _RED, _GREY = "#2f6db3", "#c8323c", "#9aa7b4"
_TABLES = {"3deg": "T1", "5deg": "T2"}
_NEAR_DB = 3.0
"""How far above the measured PSNR a published one may be and still be drawn at its height."""
_STYLE = {
    **{"svg.fonttype": "none", "svg.hashsalt": "sweep", "font.size": 9, "axes.titlesize": 10},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e8ecf0"},
}


def draw(
    job: SweepJob, table: TrialTable, found: Sequence[Importance], step: int, compute: Mapping[str, float]
) -> dict[str, str]:
    """Return picture name -> SVG. `found` is the importance at `step`, `compute` label -> device-seconds."""
    pictures: dict[str, str] = {}
    finished = [trial for trial in table.ranked() if trial.status == "finished"]
    for cost, label in (("parameters", "parameters"), ("macs_224", "multiply-adds of a 224 x 224 image")):
        if finished and all(asdict(trial.costs)[cost] for trial in finished):
            with _picture(pictures, f"front-{cost}", f"PSNR against {label}") as axes:
                _front(axes, job, finished, cost, label)
    if found:
        with _picture(pictures, "importance", f"Share of the variance of PSNR at step {step}") as axes:
            _importance(axes, found)
    if any(trial.curve for trial in table.trials):
        with _picture(pictures, "curves", "Learning curves") as axes:
            _curves(axes, job, table)
    if any(compute.values()):
        with _picture(pictures, "compute", "Device-seconds", height=1.9) as axes:
            _bars(axes, list(compute), list(compute.values()))
    return pictures


@contextmanager
def _picture(pictures: dict[str, str], name: str, title: str, height: float = 3.6) -> Iterator[Any]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, height), layout="constrained")
        axes = figure.add_subplot(title=title)
        axes.set_axisbelow(True)
        yield axes
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    pictures[name] = text[text.index("<svg") :]


def _front(axes: Any, job: SweepJob, trials: Sequence[TrialRow], cost: str, label: str) -> None:
    points = [(float(asdict(trial.costs)[cost]), trial.psnr or 0.0) for trial in trials]
    front = pareto_front(points)
    axes.set(xscale="log", xlabel=f"{label} (logarithmic)", ylabel="validation PSNR [dB]")
    axes.plot(*zip(*points, strict=True), "o", color=_BLUE, label="trials")
    axes.plot(
        *zip(*(points[i] for i in front), strict=True), "o--", color=_RED, label="none is smaller and better"
    )
    for i in front:
        axes.annotate(str(trials[i].number), points[i], (4, 4), textcoords="offset points", color=_RED)
    for name, value, published in _published(job, cost):
        text = f"paper's {name}" + ("" if published is None else f", published {published:.2f} dB")
        axes.axvline(value, color=_GREY, linewidth=1, linestyle=":")
        axes.annotate(
            text, (value, 0.03), xycoords=("data", "axes fraction"), rotation=90, ha="right", color="#5d6b7a"
        )
        if published is not None and published <= max(psnr for _, psnr in points) + _NEAR_DB:
            axes.plot(value, published, "D", color=_GREY)
    axes.legend(fontsize=8)


def _published(job: SweepJob, cost: str) -> list[tuple[str, float, float | None]]:
    """Return name, cost and published PSNR of the paper's models, where a table has the sweep's setting."""
    found = []
    for name, config in (("T", ModelConfig.tiny()), ("S", ModelConfig.small())):
        value = parameters(config) if cost == "parameters" else macs(config, 224, 224)
        table = _TABLES.get(job.setting)
        psnr = published_averages(f"{table}:MIRAGE-{name}")[0].psnr if table else None
        found.append((name, float(value), psnr))
    return found


def _importance(axes: Any, found: Sequence[Importance]) -> None:
    names, shares = [one.parameter for one in found], [one.share for one in found]
    errors = [[one.share - one.low for one in found], [one.high - one.share for one in found]]
    axes.barh(names, shares, color=_BLUE, xerr=errors, ecolor="#1c2733", capsize=3, height=0.5)
    for i, one in enumerate(found):
        axes.plot(
            [one.chance, one.chance], [i - 0.35, i + 0.35], color=_RED, label="" if i else "chance, 95 %"
        )
    axes.set(xlim=(0, 1), xlabel="share, with 95 % jackknife interval")
    axes.invert_yaxis()
    axes.legend(fontsize=8)


def _curves(axes: Any, job: SweepJob, table: TrialTable) -> None:
    best, scheduler = table.best(), job.sweep.scheduler
    length = max(trial.length for trial in table.trials)
    if scheduler.name == "asha":
        for rung in rungs(scheduler.first_steps, scheduler.reduction, length):
            axes.axvline(rung, color=_GREY, linewidth=1, linestyle=":")
    for trial in sorted(table.trials, key=lambda t: t is best):
        if not trial.curve:
            continue
        early = trial.status in ("stopped", "failed")
        colour = _RED if trial is best else _GREY if early else _BLUE
        axes.plot(
            *zip(*trial.curve, strict=True),
            ".-",
            color=colour,
            linewidth=2 if trial is best else 1,
            markersize=4,
        )
        end = trial.curve[-1]
        if early:
            axes.plot(*end, "x", color=colour)
        axes.annotate(str(trial.number), end, (4, 0), textcoords="offset points", fontsize=7, color=colour)
    axes.set(xlabel="step", ylabel="validation PSNR [dB]")


def _bars(axes: Any, labels: Sequence[str], values: Sequence[float]) -> None:
    bars = axes.barh(labels, values, color=[_RED, _BLUE, _GREY][: len(values)], height=0.6)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4)
    axes.set_xlim(0, 1.15 * max(values))
    axes.invert_yaxis()
