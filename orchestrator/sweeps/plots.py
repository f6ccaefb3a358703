"""The pictures of a sweep's report: the front, the knobs, the learning curves, the compute."""

from __future__ import annotations

from dataclasses import asdict

from mirage import ModelConfig
from mirage.cost import macs, parameters
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.paper.tables import published_averages
from orchestrator.sweeps import svg
from orchestrator.sweeps.controller import words
from orchestrator.sweeps.importance import Importance, front
from orchestrator.sweeps.svg import COLOURS, MUTED, Bar, Plot
from orchestrator.sweeps.trial_table import Table, Trial

_TABLES = {"3deg": "T1", "5deg": "T2"}
_NEAR_DB = 3.0
"""How far above what was measured a published PSNR may lie and still be drawn at its height."""


def fronts(job: SweepJob, table: Table) -> dict[str, str]:
    """Return PSNR against parameters and against multiply-adds, each with its front and the paper's T and S."""
    found = {"front-parameters": _front(job, table, "parameters", "parameters")}
    if all(trial.costs.macs_224 for trial in table.trials):
        found["front-macs"] = _front(job, table, "macs_224", "multiply-adds of a 224 x 224 image")
    return {name: picture for name, picture in found.items() if picture}


def _front(job: SweepJob, table: Table, cost: str, label: str) -> str:
    trials = [trial for trial in table.ranked() if trial.status == "finished"]
    if not trials:
        return ""
    points = [(float(asdict(trial.costs)[cost]), trial.psnr or 0.0) for trial in trials]
    landmarks = _landmarks(job, cost)
    costs = [x for x, _ in points] + [x for _, x, _ in landmarks]
    heights = [y for _, y in points]
    near = [y for _, _, y in landmarks if y is not None and y <= max(heights) + _NEAR_DB]
    plot = Plot(
        f"PSNR against {label}",
        f"{label} (logarithmic)",
        "validation PSNR [dB]",
        (min(costs) / 1.25, max(costs) * 1.35),
        svg.around([*heights, *near]),
        log_x=True,
    )
    for row, (name, x, published) in enumerate(landmarks):
        told = "" if published is None else f", published {published:.2f} dB"
        plot.vertical(x, MUTED, f"paper's {name}{told}", row)
        if published is not None and published in near:
            plot.diamond(x, published, MUTED)
    best = [points[i] for i in front(points)]
    plot.line(best, COLOURS[1], dashed=True, label="no trial is both smaller and better")
    for trial, (x, y) in zip(trials, points, strict=True):
        on_front = (x, y) in best
        plot.point(
            x,
            y,
            COLOURS[1] if on_front else COLOURS[0],
            f"trial {trial.number}: {words(trial.values)}, {y:.2f} dB",
        )
        if on_front:
            plot.text(x, y, str(trial.number), COLOURS[1], dx=8, dy=-4)
    return plot.render()


def _landmarks(job: SweepJob, cost: str) -> list[tuple[str, float, float | None]]:
    """Name, cost and published PSNR of the paper's models, where a table of the sweep's setting has both."""
    found = []
    for name, config in (("T", ModelConfig.tiny()), ("S", ModelConfig.small())):
        value = parameters(config) if cost == "parameters" else macs(config, 224, 224)
        table = _TABLES.get(job.setting)
        psnr = published_averages(f"{table}:MIRAGE-{name}")[0].psnr if table else None
        found.append((name, float(value), psnr))
    return found


def knobs(found: list[Importance], step: int) -> str:
    """Return the importance of each knob with its interval, and what chance would reach."""
    rows = [
        Bar(
            one.knob,
            one.share,
            f"{one.share:.2f} [{one.low:.2f}, {one.high:.2f}]",
            one.low,
            one.high,
            one.chance,
        )
        for one in found
    ]
    note = "black: 95 % jackknife interval over trials;  red: what a knob without effect stays below in 95 of 100 cases"
    return svg.bars(
        f"Share of the variance of PSNR that lies between a knob's values, at step {step}", rows, 1.0, note
    )


def curves(table: Table) -> str:
    """Return the validations of every trial, with a cross where one was stopped or failed."""
    drawn = [trial for trial in table.trials if trial.curve]
    if not drawn:
        return ""
    steps = [step for trial in drawn for step, _ in trial.curve]
    heights = [psnr for trial in drawn for _, psnr in trial.curve]
    plot = Plot(
        "Learning curves", "step", "validation PSNR [dB]", (0, max(steps) * 1.08), svg.around(heights)
    )
    best = table.best()
    rungs = sorted({rung for trial in drawn for rung in trial.decisions})
    for rung in rungs:
        plot.vertical(rung, MUTED, f"rung {rung}")
    for trial in sorted(drawn, key=lambda t: t is best):
        colour = _colour(trial, best)
        label = f"trial {trial.number}: {words(trial.values)}; {trial.status}, {trial.ending}"
        plot.line(trial.curve, colour, label=label, wide=2.6 if trial is best else 1.4)
        for step, psnr in trial.curve:
            plot.point(step, psnr, colour, label, size=2.4)
        step, psnr = trial.curve[-1]
        if trial.status in ("stopped", "failed"):
            plot.cross(step, psnr, colour, label)
        elif trial is best:
            plot.text(step, psnr, str(trial.number), colour)
    return plot.render()


def _colour(trial: Trial, best: Trial | None) -> str:
    if trial is best:
        return COLOURS[1]
    return "#9aa7b4" if trial.status in ("stopped", "failed") else COLOURS[0]


def compute(spent: float, whole: float, grid: float) -> str:
    """Return device-seconds spent, of the same trials without stopping, and of a full grid."""
    rows = [
        Bar("this sweep", spent, f"{spent:,.0f} device-seconds", colour=COLOURS[1]),
        Bar("without stopping", whole, f"{whole:,.0f}, estimated"),
        Bar("a full grid", grid, f"{grid:,.0f}, estimated", colour="#9aa7b4"),
    ]
    return svg.bars("Compute", rows, max(spent, whole, grid, 1e-9))
