"""Draw the report of a run as one HTML page: finished, stopped, failed or still training."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape

from orchestrator import html_page
from orchestrator.console import count, duration
from orchestrator.evaluation import score_table
from orchestrator.evaluation.scores import DegradationScore
from orchestrator.history.chart import chart
from orchestrator.history.curve import Curve
from orchestrator.history.record import PSNR, SPEED, WAITING, History, Prediction
from orchestrator.html_page import table

_CSS = """
.state { border-radius: 10px; padding: 3px 11px; font-size: 14px; color: white; background: #5d6b7a;
  vertical-align: middle; white-space: nowrap; } .finished { background: #3d8f57; } .training { background: #2f6db3; }
.stopped { background: #b9770e; } .failed { background: #c8323c; }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0; } .facts div { background: white; padding: 8px 14px;
  border: 1px solid #e3e8ee; border-radius: 6px; } .facts b { display: block; font-size: 19px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 18px; }
figure { margin: 0; } figure > svg { width: 100%; } h3 { font-size: 15px; margin: 0 0 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12.5px; } .legend svg { border: 0; width: 14px; }
.sheet { max-width: min(100%, 820px); }
details { margin: 10px 0; } .note { color: #5d6b7a; font-size: 13px; white-space: pre-line; }
"""


def run_page(
    history: History,
    scores: Sequence[DegradationScore] = (),
    legend: str = "",
    sheet: bytes | None = None,
    model: str = "",
    degraded: bytes | None = None,
) -> str:
    """Return the report of a run.

    scores: of the finished run, with the `legend` of their table. sheet: a PNG or JPEG file with examples. model: the
    registered version, if the record does not say it. degraded: a picture of what the job's pipelines drew.
    """
    facts = history.facts
    state = "finished" if scores else history.state
    body = [
        f'<h1>Run {escape(facts.run)} <span class="state {state}">{state}</span></h1>',
        _summary(history, state, model or history.model),
        _cards(history, scores),
        _scores(scores, legend),
        _picture("Examples", "Crops of held-out photographs: degraded, restored, clean", sheet),
        _picture("Pipelines", "Crops of training, degraded above clean, with what was drawn", degraded),
        _curves(history),
        "<h2>Prediction and what happened</h2>",
        _comparison(history),
        "<h2>Starts and interruptions</h2>",
        _processes(history),
        _notes(history),
        "<h2>Data, code and tracking</h2>",
        _origin(history, model or history.model),
        "<h2>Job</h2>",
        f"<details open><summary>Every key with its value</summary><pre>{escape(facts.job)}</pre></details>",
        f"<details><summary>The plan before the start</summary><pre>{escape(facts.plan)}</pre></details>",
    ]
    return html_page.page(f"Run {facts.run}", "\n".join(filter(None, body)), _CSS)


def _summary(history: History, state: str, model: str) -> str:
    facts = history.facts
    text = (
        f"Job {facts.name}, setting {facts.setting}, recipe {facts.recipe}: step {history.step:,} of "
        f"{facts.total_steps:,}."
    )
    if state == "training" and history.seconds_left is not None:
        text += f" About {duration(history.seconds_left)} left."
    if history.reason and state != "finished":
        text += f" {state.capitalize()}: {history.reason}"
    if state in ("stopped", "failed"):
        text += " Run the job again to resume at its newest checkpoint."
    if model:
        text += f" Its model is {model}."
    return f"<p>{escape(text)}</p>"


def _cards(history: History, scores: Sequence[DegradationScore]) -> str:
    latest = history.latest
    cards: list[tuple[str, str]] = []
    if scores:
        average = scores[-1]
        cards += [
            ("PSNR, average of whole photographs", f"{average.psnr:.2f} dB"),
            ("improvement over the input", f"{average.gain:+.2f} dB"),
            ("best linear fit", f"{average.baseline_psnr:.2f} dB"),
        ]
    elif (psnr := latest.get(PSNR)) is not None:
        cards.append(("PSNR of the newest validation", f"{psnr:.2f} dB"))
    cards.append(("time of all processes", duration(history.seconds)))
    if speed := _median(history.curves.get(SPEED)):
        cards.append(("speed, median", f"{speed:.1f} images/s"))
    if (waiting := _median(history.curves.get(WAITING))) is not None:
        cards.append(("waiting for data, median", f"{100 * waiting:.1f} %"))
    cards.append(("parameters", f"{history.facts.parameters:,}"))
    return (
        f'<div class="facts">{"".join(f"<div><b>{escape(v)}</b>{escape(k)}</div>" for k, v in cards)}</div>'
    )


def _scores(scores: Sequence[DegradationScore], legend: str) -> str:
    if not scores:
        return ""
    rows = map(score_table.cells, scores)
    return (
        f"<h2>Scores</h2>{table(score_table.HEAD, rows, score_table.ALIGN)}"
        f'<p>{escape(score_table.conclusion(scores))}</p><p class="note">{escape(legend)}</p>'
    )


def _picture(title: str, alt: str, picture: bytes | None) -> str:
    if picture is None:
        return ""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(picture).decode()
    return f'<h2>{title}</h2><img class="sheet" alt="{alt}" src="data:image/{kind};base64,{data}">'


def _curves(history: History) -> str:
    curves = history.curves
    begun = [process.first_step for process in history.processes[1:]]
    marks = sorted({*begun, *(step for process in history.processes for step in process.resumed_at)})
    drawn = [
        ("Loss", chart("loss", _named(curves, "loss/"), may_be_log=True, marks=marks)),
        ("Validation PSNR", chart("PSNR [dB]", _named(curves, "val/", "/psnr"), marks=marks)),
        (
            "Validation: improvement over the input",
            chart("improvement [dB]", _named(curves, "val/", "/gain"), marks=marks),
        ),
        ("Loss per degradation", chart("mean L1", _named(curves, "loss_of/"), may_be_log=True, marks=marks)),
        ("Learning rate", chart("rate", _only(curves, "optim/lr", "learning rate"), marks=marks)),
        ("Speed", chart("images/s", _only(curves, SPEED, "images per second"), marks=marks)),
        ("Waiting for data", chart("share of time", _only(curves, WAITING, "waiting"), marks=marks)),
    ]
    if any(curves["optim/skipped_steps"].values if "optim/skipped_steps" in curves else ()):
        skipped = _only(curves, "optim/skipped_steps", "skipped steps")
        drawn.append(("Steps with a gradient that was not finite", chart("steps", skipped, marks=marks)))
    found = "".join(f"<section><h3>{escape(title)}</h3>{svg}</section>" for title, svg in drawn if svg)
    if not found:
        return "<h2>Curves</h2><p>No step was measured.</p>"
    every = max((curve.every for curve in curves.values()), default=1)
    means = f" A point is the mean of up to {every} measurements." if every > 1 else ""
    dotted = " A dotted line marks where a process resumed." if marks else ""
    return f'<h2>Curves</h2><div class="charts">{found}</div><p class="note">{(means + dotted).strip()}</p>'


def _named(curves: dict[str, Curve], prefix: str, suffix: str = "") -> dict[str, Curve]:
    """Return the curves whose names begin and end so, under the part between; the average, the sum first."""
    found = {}
    for name, curve in curves.items():
        if name.startswith(prefix) and name.endswith(suffix) and name != PSNR:
            found[name.removeprefix(prefix).removesuffix(suffix).rpartition("/")[2]] = curve
    return dict(sorted(found.items(), key=lambda item: item[0] not in ("total", "average")))


def _only(curves: dict[str, Curve], name: str, label: str) -> dict[str, Curve]:
    return {label: curves[name]} if name in curves else {}


def _comparison(history: History) -> str:
    facts, hours = history.facts, history.seconds / 3600
    worker_hours = history.worker_seconds / 3600
    workers = worker_hours / hours if hours else 0.0
    chosen = min(facts.predictions, key=lambda p: abs(p.workers - workers), default=None)
    speed = _median(history.curves.get(SPEED))
    cost = None
    if facts.worker_hour is not None:
        cost = worker_hours * facts.worker_hour + hours * facts.head_hour
    peaks = {
        "gpu_peak_allocated_gib": "of a GPU at most",
        "memory_gib": "in use on a node at most, by all programs",
    }
    memory = [f"{history.peaks[key]:.2f} GiB {text}" for key, text in peaks.items() if key in history.peaks]
    rows = [
        (
            "workers",
            _predicted(chosen, lambda p: str(p.workers)),
            f"{workers:.2f} on average" if workers else "",
        ),
        ("steps", f"{facts.total_steps:,}", f"{history.step:,}"),
        (
            "time per step",
            _predicted(chosen, lambda p: f"{p.step_seconds:.3g} s"),
            f"{facts.batch / speed:.3g} s, median" if speed else "not measured",
        ),
        (
            "time in all",
            _predicted(chosen, lambda p: duration(3600 * p.hours)),
            f"{duration(history.seconds)}, {count(len(history.processes), 'start')}",
        ),
        (
            "memory per worker",
            _predicted(chosen, lambda p: f"{p.memory_gib:.2f} GiB"),
            ", ".join(memory) or "not measured",
        ),
        (
            "cost",
            _predicted(chosen, lambda p: "" if p.cost is None else f"{facts.currency} {p.cost:,.2f}")
            or "no price is set",
            "" if cost is None else f"{facts.currency} {cost:,.2f}",
        ),
    ]
    note = f"Predicted with the speed from {facts.speed_from}. " if facts.speed_from else ""
    note += (
        "The prediction is of training steps alone; what happened includes the start, checkpoints, validation and the "
        "final evaluation."
    )
    return f'{table(("", "predicted", "happened"), rows)}<p class="note">{escape(note)}</p>'


def _predicted(prediction: Prediction | None, text: Callable[[Prediction], str]) -> str:
    return "not predicted" if prediction is None else text(prediction)


def _processes(history: History) -> str:
    if not history.processes:
        return "<p>No process was recorded.</p>"
    rows = [
        (
            str(number),
            _time(process.began_unix),
            duration(process.seconds),
            f"{process.first_step:,} to {process.last_step:,}",
            process.host,
            process.code_version,
            process.end or "running",
        )
        for number, process in enumerate(history.processes, 1)
    ]
    return table(("process", "began", "time", "steps", "machine", "code", "end"), rows)


def _notes(history: History) -> str:
    if not history.notes:
        return "<p>The run was never interrupted.</p>"
    rows = [(_time(note.unix), f"{note.step:,}", note.text) for note in history.notes]
    left_out = history.notes_left_out
    more = f'<p class="note">{left_out:,} earlier events are left out.</p>' if left_out else ""
    return f"{more}{table(('time', 'step', 'event'), rows, '<><')}"


def _origin(history: History, model: str) -> str:
    facts = history.facts
    rows = [
        (
            "dataset",
            f"{data.uri}, manifest {data.digest}, {data.train:,} training and {data.test:,} test samples",
        )
        for data in facts.data
    ]
    versions = dict.fromkeys(process.code_version for process in history.processes)
    rows += [
        ("code", ", ".join(versions) or "unknown"),
        ("checkpoints", f"{history.checkpoints:,} written to {facts.folder}"),
        ("MLflow", facts.tracked),
        ("model", model or "none is registered"),
    ]
    return table(("what", "where"), rows)


def _median(curve: Curve | None) -> float | None:
    values = [value for value in curve.values if value is not None] if curve else []
    return statistics.median(values) if values else None


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
