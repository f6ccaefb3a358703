"""What came out of a sweep: Markdown, one HTML page that holds its pictures, and the leaderboard for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from orchestrator.config.constraints import amount
from orchestrator.config.sweep_schema import SweepJob, shown
from orchestrator.sweeps import plots
from orchestrator.sweeps.event_log import Event
from orchestrator.sweeps.importance import Importance, comparable, front, importance
from orchestrator.sweeps.plan import grid_points
from orchestrator.sweeps.trial_table import Table, Trial, table_of

SHOWN_REJECTED = 40


@dataclass(frozen=True)
class Compute:
    """Device-seconds: of the sweep, and estimated from it."""

    spent: float
    whole: float
    """Of the same trials, had each run to its end."""
    grid: float
    """Of a full grid of such trials."""
    points: int
    assumed: bool
    """Whether some range had to be cut into points for that."""


def write_report(job: SweepJob, name: str, events: Sequence[Event], folder: Path) -> list[Path]:
    """Write report.md, report.html, leaderboard.txt and the pictures into `folder`; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    table = table_of(events)
    step, trials = comparable(table.trials)
    knobs = importance(job.sweep.space, trials)
    spent = compute_of(job, table)
    drawn = plots.fronts(job, table)
    if knobs:
        drawn["knobs"] = plots.knobs(knobs, step)
    if picture := plots.curves(table):
        drawn["curves"] = picture
    if spent.spent:
        drawn["compute"] = plots.compute(spent.spent, spent.whole, spent.grid)
    files = {f"{key}.svg": picture for key, picture in drawn.items()}
    files["leaderboard.txt"] = "\n".join(leaderboard(job, table))
    files["report.md"] = _markdown(job, name, table, knobs, step, spent, list(drawn))
    files["report.html"] = _page(job, name, table, knobs, step, spent, drawn)
    for file, content in files.items():
        (folder / file).write_text(content)
    return [folder / file for file in files]


def compute_of(job: SweepJob, table: Table) -> Compute:
    """Return what the sweep spent; a step of a trial is taken to cost what its own steps did."""
    begun = [trial for trial in table.trials if trial.step and trial.length]
    rates = [trial.device_seconds / trial.step for trial in begun]
    whole = sum(rate * trial.length for rate, trial in zip(rates, begun, strict=True))
    points, assumed = grid_points(job)
    grid = whole / len(begun) * points if begun else 0.0
    return Compute(table.device_seconds, whole, grid, points, assumed)


def leaderboard(job: SweepJob, table: Table) -> list[str]:
    """Return the table as aligned lines."""
    rows = [_head(job), *(_row(job, trial) for trial in table.ranked())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _head(job: SweepJob) -> tuple[str, ...]:
    knobs = (knob.rpartition(".")[2] for knob in job.sweep.space)
    return ("trial", "PSNR", *_columns(job), *knobs, "parameters", "MACs 224²", "step", "device s", "status")


def _columns(job: SweepJob) -> tuple[str, ...]:
    return tuple(job.evaluate.degradations)


def _row(job: SweepJob, trial: Trial) -> tuple[str, ...]:
    each = (trial.metrics.get(f"val/{job.setting}/{one}/psnr") for one in _columns(job))
    return (
        str(trial.number),
        "" if trial.psnr is None else f"{trial.psnr:.3f}",
        *("" if psnr is None else f"{psnr:.2f}" for psnr in each),
        *(shown(trial.values[knob]) if knob in trial.values else "-" for knob in job.sweep.space),
        amount("parameters", trial.costs.parameters),
        amount("macs_224", trial.costs.macs_224) if trial.costs.macs_224 else "",
        f"{trial.step:,}",
        f"{trial.device_seconds:,.0f}",
        trial.status,
    )


# --- words that both reports share -----------------------------------------------------------------------------


def _facts(job: SweepJob, table: Table) -> list[str]:
    count = {
        status: sum(t.status == status for t in table.trials) for status in ("finished", "stopped", "failed")
    }
    open_ = sum(not trial.ended for trial in table.trials)
    best = table.best()
    told = [
        f"{len(table.trials)} trials: {count['finished']} finished, {count['stopped']} stopped early, "
        f"{count['failed']} failed"
        + (f", {open_} not ended yet" if open_ else "")
        + f"; {_candidates(table)} rejected before costing anything.",
        f"Search: {job.sweep.search.method}, seed {job.sweep.search.seed}; scheduler: {job.sweep.scheduler.name}; "
        f"recipe {job.recipe}, setting {job.setting}.",
    ]
    if best is not None:
        chosen = ", ".join(f"{knob} {shown(value)}" for knob, value in best.values.items())
        told.append(
            f"Best: trial {best.number} with {best.psnr:.3f} dB: {chosen}; {best.costs.parameters:,} parameters."
        )
    return [*told, *(f"The search ended early: {note}." for note in table.notes)]


def _candidates(table: Table) -> str:
    return "1 candidate was" if len(table.rejected) == 1 else f"{len(table.rejected)} candidates were"


def _how(job: SweepJob) -> str:
    photographs, side = job.validation.photographs, job.validation.crop_pixels
    weights = "EMA" if job.train.ema_decay else "raw"
    return (
        f"PSNR: mean over degradations of centre crops of {side} x {side} pixels, {photographs} held-out photographs "
        f"to a degradation, {weights} weights. Trials are chosen by these very photographs, so the best one's own "
        "score is somewhat too good: it is the highest of several. Rows that are not finished stand where they were "
        "stopped, and are no equals of those that are."
    )


def _of_compute(spent: Compute) -> str:
    text = (
        f"{spent.spent:,.0f} device-seconds were spent, workers' start-up among them. Without stopping, the same "
        f"trials would have taken about {spent.whole:,.0f}; a full grid of {spent.points:,} points about "
        f"{spent.grid:,.0f}"
        + (f" ({100 * spent.spent / spent.grid:.0f} % of it were spent)." if spent.grid else ".")
    )
    return text + (" Ranges without `points` are counted as 3 of them." if spent.assumed else "")


def _of_front(job: SweepJob, table: Table) -> str:
    trials = [trial for trial in table.ranked() if trial.status == "finished"]
    told = []
    for cost, label in (("parameters", "parameters"), ("macs_224", "multiply-adds")):
        points = [(float(asdict(trial.costs)[cost]), trial.psnr or 0.0) for trial in trials]
        members = ", ".join(
            f"{trials[i].number} ({amount(cost, points[i][0])}, {points[i][1]:.2f} dB)" for i in front(points)
        )
        told.append(f"On the front of PSNR against {label}: trials {members or 'none'}.")
    told.append(
        "The paper's T and S are landmarks of size with their published averages: other data, other training, and "
        "another protocol than this validation."
    )
    return " ".join(told)


def _knob_rows(knobs: Sequence[Importance]) -> list[tuple[str, ...]]:
    return [
        (one.knob, f"{one.share:.2f}", f"[{one.low:.2f}, {one.high:.2f}]", f"{one.chance:.2f}", one.verdict)
        for one in knobs
    ]


_KNOB_HEAD = ("knob", "share of variance", "95 % interval", "chance reaches", "verdict")


def _of_knobs(knobs: Sequence[Importance], step: int) -> str:
    if not knobs:
        return "Too few trials, or no step that all of them reached: nothing is said of importance."
    return (
        f"The share of the variance of PSNR at step {step}, the last that all {knobs[0].trials} trials with a "
        "validation reached, that lies between the values of a knob. Interval: jackknife over trials. Chance: what a "
        "knob without effect stays below in 95 of 100 cases with so many trials."
    )


def _ends(table: Table) -> list[tuple[str, ...]]:
    return [(str(t.number), t.reason, t.status, t.ending or "-", t.run or "-") for t in table.trials]


_ENDS_HEAD = ("trial", "suggested as", "status", "why", "run")


# --- Markdown --------------------------------------------------------------------------------------------------


def _markdown(
    job: SweepJob,
    name: str,
    table: Table,
    knobs: Sequence[Importance],
    step: int,
    spent: Compute,
    drawn: Sequence[str],
) -> str:
    def picture(*names: str) -> list[str]:
        return [f"![{one}]({one}.svg)" for one in names if one in drawn]

    parts = [
        f"# Sweep {name}",
        *_facts(job, table),
        "## Leaderboard",
        _md_table(_head(job), [_row(job, trial) for trial in table.ranked()]),
        _how(job),
        "## Pareto front",
        *picture("front-parameters", "front-macs"),
        _of_front(job, table),
        "## Which knobs mattered",
        *picture("knobs"),
        *([_md_table(_KNOB_HEAD, _knob_rows(knobs))] if knobs else []),
        _of_knobs(knobs, step),
        "## Learning curves",
        *picture("curves"),
        "A cross is where a trial was stopped.",
        "## Compute",
        *picture("compute"),
        _of_compute(spent),
        "## Every suggestion and every end",
        _md_table(_ENDS_HEAD, _ends(table)),
        "## Rejected before they cost anything",
        *_rejected(table),
    ]
    return "\n\n".join(parts) + "\n"


def _md_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(row) + " |" for row in [head, *([c.replace("|", "/") for c in row] for row in rows)]
    ]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _rejected(table: Table) -> list[str]:
    if not table.rejected:
        return ["None."]
    rows = [
        (", ".join(f"{knob} {shown(value)}" for knob, value in one.values.items()), one.reason)
        for one in table.rejected[:SHOWN_REJECTED]
    ]
    more = len(table.rejected) - len(rows)
    return [_md_table(("values", "reason"), rows), *([f"And {more} more."] if more else [])]


# --- HTML ------------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #f5f7f9; margin: 0; }
main { max-width: 1320px; margin: 0 auto; padding: 28px 24px 60px; }
h1 { font-size: 24px; margin: 0 0 6px; } h2 { font-size: 18px; margin: 34px 0 10px; }
p { max-width: 82ch; margin: 6px 0; } .how { color: #5d6b7a; font-size: 13px; }
.scroll { overflow-x: auto; background: white; border: 1px solid #e3e8ee; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid #eef1f4; white-space: nowrap; }
td.long { white-space: normal; min-width: 22ch; } th { background: #fafbfc; font-weight: 600; }
tr.best td { background: #fdf1f2; font-weight: 600; } tr.stopped td, tr.failed td { color: #7b8794; }
.pictures { display: flex; flex-wrap: wrap; gap: 14px; margin: 10px 0; }
.pictures figure { margin: 0; background: white; border: 1px solid #e3e8ee; border-radius: 6px;
  padding: 8px; max-width: 100%; }
svg { max-width: 100%; height: auto; display: block; }
"""


def _page(
    job: SweepJob,
    name: str,
    table: Table,
    knobs: Sequence[Importance],
    step: int,
    spent: Compute,
    drawn: dict[str, str],
) -> str:
    def figures(*names: str) -> str:
        inside = "".join(f"<figure>{drawn[one]}</figure>" for one in names if one in drawn)
        return f'<div class="pictures">{inside}</div>' if inside else ""

    best = table.best()
    classes = ["best" if trial is best else trial.status for trial in table.ranked()]
    body = [
        f"<h1>Sweep {escape(name)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in _facts(job, table)),
        "<h2>Leaderboard</h2>",
        _html_table(_head(job), [_row(job, trial) for trial in table.ranked()], classes),
        f'<p class="how">{escape(_how(job))}</p>',
        "<h2>Pareto front</h2>",
        figures("front-parameters", "front-macs"),
        f'<p class="how">{escape(_of_front(job, table))}</p>',
        "<h2>Which knobs mattered</h2>",
        figures("knobs"),
        _html_table(_KNOB_HEAD, _knob_rows(knobs)) if knobs else "",
        f'<p class="how">{escape(_of_knobs(knobs, step))}</p>',
        "<h2>Learning curves</h2>",
        figures("curves"),
        '<p class="how">A cross is where a trial was stopped. Point at a line to read what it is.</p>',
        "<h2>Compute</h2>",
        figures("compute"),
        f'<p class="how">{escape(_of_compute(spent))}</p>',
        "<h2>Every suggestion and every end</h2>",
        _html_table(_ENDS_HEAD, _ends(table)),
        f"<h2>Rejected before they cost anything</h2>{_html_rejected(table)}",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sweep {escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] | None = None
) -> str:
    def cells(row: Sequence[str]) -> str:
        return "".join(
            f'<td class="long">{escape(cell)}</td>' if len(cell) > 30 else f"<td>{escape(cell)}</td>"
            for cell in row
        )

    names = classes or [""] * len(rows)
    body = "".join(f'<tr class="{kind}">{cells(row)}</tr>' for row, kind in zip(rows, names, strict=True))
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _html_rejected(table: Table) -> str:
    if not table.rejected:
        return "<p>None.</p>"
    rows = [
        (", ".join(f"{knob} {shown(value)}" for knob, value in one.values.items()), one.reason)
        for one in table.rejected[:SHOWN_REJECTED]
    ]
    more = len(table.rejected) - len(rows)
    inside = _html_table(("values", "reason"), rows) + (f"<p>And {more} more.</p>" if more else "")
    return f"<details><summary>{len(table.rejected)} candidates</summary>{inside}</details>"
