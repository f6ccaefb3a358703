"""What a sweep will do and cost, computed without Ray, without a GPU and without running a trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from mirage.cost import macs
from orchestrator.config import crop_stages
from orchestrator.config.constraints import Costs, amount, rejection
from orchestrator.config.schema import Job
from orchestrator.config.search_space import Values, candidate
from orchestrator.config.sweep_schema import SweepJob, rungs
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.sweeps.controller import HOPELESS, words
from orchestrator.sweeps.costs import cost_of
from orchestrator.sweeps.search import Tried, count, propose

SHOWN = 24
"""Candidates of one kind that are listed."""
ASSUMED_POINTS = 3
"""Into how many values a range without `points` is cut where a full grid is only compared with."""
_FORWARD_AND_BACKWARD = 3
"""Multiply-adds of a training step over those of its forward pass, about."""


@dataclass
class Preview:
    """Candidates as the sweep will propose them, as far as that does not depend on results."""

    accepted: list[tuple[Values, Job, Costs]] = field(default_factory=list)
    rejected: list[tuple[Values, str]] = field(default_factory=list)
    exhausted: bool = False
    """Whether there are no others."""


def preview(job: SweepJob) -> Preview:
    """Return the candidates that the sweep begins with: for a grid and for random search those that it will run."""
    found = Preview()
    tried: list[Tried] = []
    in_a_row = 0
    while len(found.accepted) < job.sweep.trials and in_a_row < HOPELESS:
        proposal = propose(job.sweep, tried)
        if proposal is None:
            found.exhausted = True
            break
        tried.append(Tried(proposal.values, None))
        made = candidate(job, proposal.values)
        costs = None if made.job is None else cost_of(made.job)
        why_not = made.impossible if costs is None else rejection(costs, job.sweep.constraints)
        if made.job is None or costs is None or why_not:
            found.rejected.append((proposal.values, why_not))
            in_a_row += 1
        else:
            found.accepted.append((proposal.values, made.job, costs))
            in_a_row = 0
    return found


def plan_sweep(job: SweepJob) -> str:
    """Return what the sweep will do and take, as text."""
    base = make_plan(Job.model_validate(job.model_dump(mode="json", exclude={"sweep", "kind"})), strict=False)
    seen = preview(job)
    length = min(job.sweep.steps or base.total_steps, base.total_steps)
    lines = [
        f"sweep {job.name}   setting {job.setting}   recipe {job.recipe}   seed {job.seed}",
        "",
        *_space(job),
        *(f"{'within' if i == 0 else '':<10} {text}" for i, text in enumerate(job.sweep.constraints)),
        f"search     {_search(job)}",
        f"stopping   {_stopping(job, length)}",
        f"trials     {_trials(job, length, base)}",
        *_candidates(job, seen),
        *_work(job, base, seen, length),
        f"winner     {_winner(job)}",
    ]
    return "\n".join([*lines, *(f"warning: {text}" for text in base.warnings)])


def grid_points(job: SweepJob) -> tuple[int, bool]:
    """Return how many points a full grid has, and whether some range had to be cut for that."""
    points = count(job.sweep.space)
    if points is not None:
        return points, False
    space = {
        knob: domain if domain.values is not None else domain.model_copy(update={"points": ASSUMED_POINTS})
        for knob, domain in job.sweep.space.items()
    }
    found = count(space)
    assert found is not None, "every range is cut now"
    return found, True


def _space(job: SweepJob) -> list[str]:
    width = max(len(knob) for knob in job.sweep.space)
    return [
        f"{'space' if i == 0 else '':<10} {knob:<{width}}  {domain}"
        for i, (knob, domain) in enumerate(job.sweep.space.items())
    ]


def _search(job: SweepJob) -> str:
    search = job.sweep.search
    if search.method == "grid":
        return "grid, every point in the order of the file"
    text = f"{search.method}, seed {search.seed}"
    if search.method == "tpe":
        text += f", {search.startup_trials} draws before it learns"
        text += f"; PSNR against {search.against}" if search.against else "; validation PSNR"
    return text


def _stopping(job: SweepJob, length: int) -> str:
    scheduler = job.sweep.scheduler
    if scheduler.name == "none":
        return "none: every trial runs to its end"
    at = ", ".join(f"{step:,}" for step in rungs(scheduler.first_steps, scheduler.reduction, length))
    return f"asha: at steps {at} one of {scheduler.reduction} goes on"


def _trials(job: SweepJob, length: int, base: Plan) -> str:
    workers, sweep = job.workers, job.sweep
    kind = f"{workers.gpus:g} GPU" if workers.gpus else f"{workers.cpus:g} CPU"
    of = f" of the job's {base.total_steps:,}" if length < base.total_steps else ""
    at_once = (
        f"at most {sweep.max_concurrent} at a time"
        if sweep.max_concurrent
        else "as many at a time as there is room for"
    )
    return f"{sweep.trials} of {length:,} steps{of}, {workers.min} x {kind} each, {at_once}"


def _candidates(job: SweepJob, seen: Preview) -> list[str]:
    learns = job.sweep.search.method == "tpe"
    told = "drawn, if none were learnt" if learns else "in this order"
    points, assumed = grid_points(job)
    whole = f"a full grid has {points:,} points" + (f" ({ASSUMED_POINTS} to a range)" if assumed else "")
    lines = [f"candidates {len(seen.accepted)} accepted, {told}; {len(seen.rejected)} rejected; {whole}"]
    rows = [
        (
            words(values),
            amount("parameters", costs.parameters),
            amount("macs_224", costs.macs_224),
            amount("training_memory", costs.training_memory),
        )
        for values, _, costs in seen.accepted[:SHOWN]
    ]
    if rows:
        widths = [
            max(len(row[i]) for row in [*rows, ("", "parameters", "MACs 224²", "memory")]) for i in range(4)
        ]
        head = ("", "parameters", "MACs 224²", "memory")
        for row in [head, *rows]:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
            ]
            lines.append("             " + "  ".join(cells).rstrip())
    if len(seen.accepted) > SHOWN:
        lines.append(f"             and {len(seen.accepted) - SHOWN} more")
    for i, (values, reason) in enumerate(seen.rejected[:SHOWN]):
        lines.append(f"{'rejected' if i == 0 else '':<10}   {words(values)}: {reason}")
    if len(seen.rejected) > SHOWN:
        lines.append(f"             and {len(seen.rejected) - SHOWN} more")
    return lines


def _work(job: SweepJob, base: Plan, seen: Preview, length: int) -> list[str]:
    """What training takes in multiply-adds: the only cost that is known of a machine nobody has measured."""
    if job.model.class_ is not None or not seen.accepted:
        return []
    samples = base.stages.position_at(length)
    each = [_of_trial(trial, samples) for _, trial, _ in seen.accepted]
    mean = sum(each) / len(each)
    trials = mean * min(job.sweep.trials, len(each) if seen.exhausted else job.sweep.trials)
    text = f"work       {_petas(trials)} for all trials to their ends"
    if job.sweep.scheduler.name == "asha":
        text += f", about {_petas(trials * _share(job, length))} if the rungs stop what they should"
    points, _ = grid_points(job)
    return [text + f"; a full grid: {_petas(mean * points)}"]


def _of_trial(job: Job, samples: int) -> float:
    pixels = crop_stages.declared(job)[0].pixels
    return _FORWARD_AND_BACKWARD * macs(job.model.build(), pixels, pixels) * samples


def _share(job: SweepJob, length: int) -> float:
    """Return the share of the steps that trials do on average when one of `reduction` goes on from each rung."""
    scheduler = job.sweep.scheduler
    marks: Sequence[int] = (0, *rungs(scheduler.first_steps, scheduler.reduction, length), length)
    work = sum((after - before) / scheduler.reduction**i for i, (before, after) in enumerate(pairwise(marks)))
    return float(work) / length


def _petas(number: float) -> str:
    for unit, scale in (("P", 1e15), ("T", 1e12)):
        if number >= scale:
            return f"{number / scale:,.3g} {unit}MAC"
    return f"{number / 1e9:,.3g} GMAC"


def _winner(job: SweepJob) -> str:
    winner = job.sweep.winner
    if winner.then == "none":
        return "is reported"
    how = (
        "is run on to its job's end"
        if winner.then == "continue"
        else "is trained anew with " + ", ".join(f"{key}={value}" for key, value in winner.set.items())
    )
    return f"{how}, judged, and registered as {job.track.register_as}, candidate"
