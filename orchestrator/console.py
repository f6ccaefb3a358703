"""Render events for the terminal: as text for people, or as one JSON object per line for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Literal

from orchestrator import events
from orchestrator.events import Emit, Event

Echo = Callable[[str], None]
"""Prints text for the user."""

_TERMS = ("total", "l1", "fourier", "spd")
"""Loss terms in the order of a line; others follow."""

Move = Callable[[float, int, str], None]
"""Moves the bar of a training: steps done, steps in all, and what is shown beside it."""


def console(echo: Echo, log_format: Literal["text", "json"], job: str, move: Move | None = None) -> Emit:
    """Return a function that prints events in the format of `track.log`; as text, `move` shows the progress."""
    return json_console(echo, job) if log_format == "json" else text_console(echo, move)


def text_console(echo: Echo, move: Move | None = None) -> Emit:
    """Return a function that prints the text of an event, if it has one; progress goes to `move`, if there is one."""

    def emit(event: Event) -> None:
        if move is not None and isinstance(event, events.Progress):
            move(event.step, event.total_steps, _measures(event))
        elif line := text(event):
            echo(line)

    return emit


def json_console(echo: Echo, job: str, clock: Callable[[], float] = time.time) -> Emit:
    """Return a function that prints each event as a JSON object with its time, the job, its fields and its text.

    Images and blank messages are left out.
    """

    def emit(event: Event) -> None:
        line = text(event).strip()
        if isinstance(event, events.Image) or (isinstance(event, events.LogMessage) and not line):
            return
        at = datetime.fromtimestamp(clock(), UTC).isoformat(timespec="milliseconds")
        content = {"time": at, "job": job, "text": line, **events.to_dict(event)}
        if not line:
            del content["text"]
        echo(json.dumps(content, ensure_ascii=False))

    return emit


def message_echo(emit: Emit) -> Echo:
    """Return a function that emits text as a `LogMessage`."""
    return lambda text: emit(events.LogMessage(text))


def text(event: Event) -> str:
    """Return an event as text for people; "" for an event that the terminal does not show."""
    match event:
        case events.LogMessage(message, level):
            return message if level == "info" else f"{level}: {message}"
        case events.RunStarted(run_id, resumed):
            return f"run {run_id}" + (" resumes" if resumed else "")
        case events.RunAlreadyFinished(run_id):
            return (
                f"run {run_id} is finished already; this is its result. To train again, change the job: "
                "--set seed=1"
            )
        case events.RunStopped(step):
            where = f"at step {step} with a checkpoint" if step else "before the first step"
            return f"stopped {where}. Run the job again to resume."
        case events.ModelRegistered(name, version, uri):
            return f"model      {name} version {version}, alias candidate   {uri}"
        case events.RunFinished(_, files, tracking):
            pictures = [
                f"picture    {files[name]}" for name in ("sheet.png", "restored.png") if name in files
            ]
            return "\n".join([*pictures, f"report     {files['report.md']}", f"MLflow     {tracking}"])
        case events.WorkersStarting(workers):
            return f"starting {count(workers, 'worker')} (10 to 30 seconds)"
        case events.WorkersStarted(workers):
            return "1 worker trains" if workers == 1 else f"{workers} workers train"
        case events.WorkersLost(nodes, ranks, waiting_for):
            lost = f"lost node {_short(nodes)} with worker {', '.join(map(str, ranks))}"
            return f"{lost}: waiting for resources for {waiting_for}"
        case events.RestartRequested():
            return f"{_restart_reason(event)}: the run writes a checkpoint at its next step and restarts its workers"
        case events.StopRequested(reason):
            before = f"{reason}\n" if reason else ""
            return f"{before}stopping: the run writes a checkpoint at its next step and stops"
        case events.WorkersRestarting(step):
            return f"another group of workers resumes from step {step}"
        case events.WorkersReplaced(ranks, reason):
            which = f"worker {ranks[0]}" if len(ranks) == 1 else f"workers {', '.join(map(str, ranks))}"
            return f"{which} failed: {reason}"
        case events.WorkersHung(ranks, nodes):
            which = ", ".join(f"{rank} on node {node[:8]}" for rank, node in zip(ranks, nodes, strict=True))
            return f"did not answer within workers.collective_timeout_seconds and is replaced: worker {which}"
        case events.WorkersFailed(error):
            return f"{error}\nThe run made progress before it failed; restarting it."
        case events.WorkerKilled(rank, step):
            return f"killing worker {rank} after step {step}"
        case events.Resumed(checkpoint, step):
            return f"resumed from checkpoint {checkpoint} at step {step}"
        case events.ProfileWritten(uri):
            return f"profile: {uri}"
        case events.Progress():
            return _progress(event)
        case events.Validation(step=step, psnr=psnr, gain=gain):
            each = ", ".join(f"{name} {psnr[name]:.2f} ({gain[name]:+.2f})" for name in psnr)
            return f"step {step}: validation PSNR [dB] (gain): {each}"
    return ""


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _restart_reason(event: events.RestartRequested) -> str:
    match event:
        case events.NodesDraining(nodes, ranks, seconds):
            when = f" in {seconds:.0f} s" if seconds is not None else ""
            return f"node {_short(nodes)} leaves{when}, with worker {', '.join(map(str, ranks))}"
        case events.CapacityAvailable(more):
            return f"the cluster has capacity for {count(more, 'more worker')}"
    return "a worker received SIGTERM"


def _short(nodes: Iterable[str]) -> str:
    return ", ".join(node[:8] for node in nodes)


def _progress(event: events.Progress) -> str:
    waiting = f"waiting for data {100 * event.metrics['perf/data_wait']:.1f} %"
    return f"step {event.step}/{event.total_steps}  {_measures(event)}  {waiting}  {duration(event.seconds_left)} left"


def _measures(event: events.Progress) -> str:
    metrics = event.metrics
    values = {
        name.removeprefix("loss/"): value for name, value in metrics.items() if name.startswith("loss/")
    }
    terms = [*(term for term in _TERMS if term in values), *(term for term in values if term not in _TERMS)]
    losses = [f"{term} {values[term]:.4f}" for term in terms if values[term] or term == "total"]
    rate = [f"lr {metrics['optim/lr']:.2e}"] if "optim/lr" in metrics else []
    return "  ".join([*losses, *rate, f"{metrics['perf/images_per_second']:.1f} images/s"])


def duration(seconds: float) -> str:
    """Return a time span as `4m05s` or `2h09m`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
