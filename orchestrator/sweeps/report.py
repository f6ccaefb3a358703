"""The report of a sweep: Markdown, the same as one HTML page with its pictures, and the leaderboard for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from orchestrator import html_page, tables
from orchestrator.config.constraints import format_quantity
from orchestrator.config.search_space import format_params
from orchestrator.config.sweep_schema import SweepJob, format_value
from orchestrator.outputs import write_output
from orchestrator.planning.sweep_plan import grid_points
from orchestrator.sweeps.event_schema import SweepEvent
from orchestrator.sweeps.importance import Importance, comparable, importance, pareto_front
from orchestrator.sweeps.trial_table import TrialRow, TrialTable, table_of

MAX_REJECTED = 40
"""Rejected candidates that are listed."""


@dataclass(frozen=True)
class Compute:
    """Device-seconds of a sweep, and estimates from them."""

    spent: float
    unstopped: float
    """Estimate for the same trials if each had run to its end."""
    grid: float
    """Estimate for a full grid of such trials."""
    points: int
    """Points of that grid."""
    assumed: bool
    """Whether that assumes `points` for a range without them."""


def write_report(job: SweepJob, name: str, events: Sequence[SweepEvent], folder: Path) -> list[Path]:
    """Write report.md, report.html, leaderboard.txt and the pictures into `folder`; return the files."""
    from orchestrator.sweeps import plots  # matplotlib takes a second to import

    table = table_of(events)
    step, compared = comparable(table.trials)
    found, spent = importance(job.sweep.space, compared), compute_of(job, table)
    bars = {"this sweep": spent.spent, "without stopping": spent.unstopped, "a full grid": spent.grid}
    pictures = plots.draw(job, table, found, step, bars)
    text = "\n\n".join([f"# Sweep {name}", *_sections(job, table, found, step, spent)]) + "\n"
    text = re.sub(r"!\[(\S+)\]\n\n", lambda m: f"![{m[1]}]({m[1]}.svg)\n\n" if m[1] in pictures else "", text)
    files = {f"{key}.svg": picture for key, picture in pictures.items()}
    files |= {"leaderboard.txt": "\n".join(leaderboard(job, table)), "report.md": text}
    files["report.html"] = _html(name, text, pictures)
    return [write_output(folder / file, content) for file, content in files.items()]


def compute_of(job: SweepJob, table: TrialTable) -> Compute:
    """Return what the sweep spent, and estimates that assume equal costs of all steps of a trial."""
    started = [trial for trial in table.trials if trial.step and trial.length]
    whole = sum(trial.device_seconds / trial.step * trial.length for trial in started)
    points, assumed = grid_points(job)
    return Compute(table.device_seconds, whole, whole / max(1, len(started)) * points, points, assumed)


def leaderboard(job: SweepJob, table: TrialTable) -> list[str]:
    """Return the trials, best first, as aligned lines."""
    return tables.aligned(_head(job), [_row(job, trial) for trial in table.ranked()])


def _head(job: SweepJob) -> tuple[str, ...]:
    names = (parameter.rpartition(".")[2] for parameter in job.sweep.space)
    costs = ("parameters", "MACs 224²", "step", "device s", "status")
    return ("trial", "PSNR", *job.evaluate.degradations, *names, *costs)


def _row(job: SweepJob, trial: TrialRow) -> tuple[str, ...]:
    each = (trial.metrics.get(f"val/{job.setting}/{one}/psnr") for one in job.evaluate.degradations)
    return (
        str(trial.number),
        "" if trial.psnr is None else f"{trial.psnr:.3f}",
        *("" if psnr is None else f"{psnr:.2f}" for psnr in each),
        *(format_value(trial.values[name]) if name in trial.values else "-" for name in job.sweep.space),
        format_quantity("parameters", trial.costs.parameters),
        format_quantity("macs_224", trial.costs.macs_224) if trial.costs.macs_224 else "",
        f"{trial.step:,}",
        f"{trial.device_seconds:,.0f}",
        trial.status,
    )


def _sections(
    job: SweepJob, table: TrialTable, found: Sequence[Importance], step: int, spent: Compute
) -> Iterator[str]:
    """Yield the paragraphs of the report; `![NAME]` stands for a picture that may not exist."""
    yield from _summary(job, table)
    yield "## Leaderboard"
    yield _table(_head(job), [_row(job, trial) for trial in table.ranked()])
    yield (
        f"PSNR: mean over degradations of centre crops of {job.validation.crop_pixels} pixels, "
        f"{job.validation.photographs} held-out photographs for each degradation, "
        f"{'EMA' if job.train.ema_decay else 'raw'} weights. Trials are chosen by the same photographs that they are "
        "ranked by, so the score of the best one is biased upwards: it is the highest of several. Rows of trials that "
        "did not finish show their last validation and cannot be compared with rows that did."
    )
    yield "## Pareto front\n\n![front-parameters]\n\n![front-macs_224]\n\n" + _front(table)
    yield "## Which parameters mattered\n\n![importance]"
    if found:
        yield _table(
            ("parameter", "share of variance", "95 % interval", "chance", "verdict"),
            [
                (p.parameter, f"{p.share:.2f}", f"[{p.low:.2f}, {p.high:.2f}]", f"{p.chance:.2f}", p.verdict)
                for p in found
            ],
        )
        yield (
            f"Share of the variance of PSNR between the values of a parameter, at step {step}, the last one that all "
            f"{found[0].trials} trials with a validation reached. Interval: jackknife over trials. Chance: 95th "
            "percentile for a parameter without effect and as many trials."
        )
    else:
        yield "Too few trials share a validation step."
    yield "## Learning curves\n\n![curves]\n\nA cross marks the end of a stopped or failed trial."
    share = f" (the sweep took {100 * spent.spent / spent.grid:.0f} % of that)" if spent.grid else ""
    yield (
        f"## Compute\n\n![compute]\n\nThe sweep took {spent.spent:,.0f} device-seconds, including start-up. Estimates: "
        f"the same trials without stopping {spent.unstopped:,.0f}, a full grid of {spent.points:,} points "
        f"{spent.grid:,.0f}{share}."
        + (" A range without `points` counts as 3 values." if spent.assumed else "")
    )
    yield "## Every suggestion and every end"
    rows = [(str(t.number), t.reason, t.status, t.ending or "-", t.run or "-") for t in table.trials]
    yield _table(("trial", "suggested by", "status", "reason", "run"), rows)
    more = f", of which {MAX_REJECTED} are listed" if len(table.rejected) > MAX_REJECTED else ""
    yield f"## Rejected before training\n\n{len(table.rejected)} of {table.candidates} candidates{more}."
    yield _table(
        ("values", "reason"), [(format_params(r.values), r.reason) for r in table.rejected[:MAX_REJECTED]]
    )


def _summary(job: SweepJob, table: TrialTable) -> Iterator[str]:
    count = {s: sum(t.status == s for t in table.trials) for s in ("finished", "stopped", "failed")}
    unfinished = sum(not trial.ended for trial in table.trials)
    yield (
        f"{len(table.trials)} trials: {count['finished']} finished, {count['stopped']} stopped early, "
        f"{count['failed']} failed{f', {unfinished} not ended yet' if unfinished else ''}."
    )
    sweep, best = job.sweep, table.best()
    yield (
        f"Search: {sweep.search.method}, seed {sweep.search.seed}; scheduler: {sweep.scheduler.name}; recipe "
        f"{job.recipe}, setting {job.setting}."
    )
    if best is not None:
        yield (
            f"**Best: trial {best.number} with {best.psnr:.3f} dB:** {format_params(best.values)}; "
            f"{best.costs.parameters:,} parameters."
        )
    yield from (f"The search ended early: {note}." for note in table.notes)


def _front(table: TrialTable) -> str:
    trials = [trial for trial in table.ranked() if trial.status == "finished"]
    texts = []
    for cost, label in (("parameters", "parameters"), ("macs_224", "multiply-adds")):
        points = [(float(asdict(trial.costs)[cost]), trial.psnr or 0.0) for trial in trials]
        members = ", ".join(
            f"{trials[i].number} ({format_quantity(cost, points[i][0])}, {points[i][1]:.2f} dB)"
            for i in pareto_front(points)
        )
        texts.append(f"Trials on the front of PSNR against {label}: {members or 'none'}.")
    return " ".join(texts) + (
        " The paper's T and S show sizes and their published averages, which come from other data, other training and "
        "another protocol than this validation."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(tables.markdown(head, rows)) if rows else ""


def _html(name: str, text: str, pictures: dict[str, str]) -> str:
    """Return the Markdown as a page that holds its pictures."""
    body = str(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
    body = re.sub(r'<p><img src="\S+" alt="(\S+)" /></p>', lambda found: pictures[found[1]], body)
    return html_page.page(f"Sweep {name}", body)
