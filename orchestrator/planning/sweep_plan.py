"""What a sweep will do and take, computed without Ray, without a GPU and without running a trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise

from mirage.cost import macs
from orchestrator import tables
from orchestrator.config import crop_stages
from orchestrator.config.constraints import Costs, format_quantity
from orchestrator.config.schema import Job
from orchestrator.config.search_space import Values, format_params, grid, random_points
from orchestrator.config.sweep_schema import Domain, SweepJob, rungs
from orchestrator.planning.candidate_costs import examine
from orchestrator.planning.plan import Plan, make_plan

MAX_CONSECUTIVE_REJECTIONS = 200
"""Rejected candidates in a row after which a search ends."""
MAX_LISTED = 24
"""Candidates of one kind that are listed."""
ASSUMED_POINTS = 3
"""Values of a range without `points` where a full grid is only compared with."""
_MAX_COUNTED = 20_000
"""Largest grid whose points are counted one by one, because conditions leave out some."""
_FORWARD_AND_BACKWARD = 3
"""Multiply-adds of a training step divided by those of its forward pass, approximately."""


@dataclass
class Preview:
    """Candidates that the sweep will propose, as far as they do not depend on results."""

    accepted: list[tuple[Values, Job, Costs]] = field(default_factory=list)
    rejected: list[tuple[Values, str]] = field(default_factory=list)
    exhausted: bool = True
    """Whether there are no others."""


def preview(job: SweepJob) -> Preview:
    """Return the first candidates: exact for grid and random search, random ones for searchers that learn."""
    sweep, found = job.sweep, Preview()
    points = (
        grid(sweep.space) if sweep.search.method == "grid" else random_points(sweep.space, sweep.search.seed)
    )
    in_a_row = 0
    for values in points:
        made = examine(job, values)
        if isinstance(made, str):
            found.rejected.append((values, made))
            in_a_row += 1
        else:
            found.accepted.append((values, *made))
            in_a_row = 0
        if len(found.accepted) == sweep.trials or in_a_row == MAX_CONSECUTIVE_REJECTIONS:
            found.exhausted = False
            break
    return found


def plan_sweep(job: SweepJob) -> str:
    """Return what the sweep will do and take, as text."""
    base = make_plan(with_network(job, training_job(job)), strict=False)
    seen = preview(job)
    length = min(job.sweep.steps or base.total_steps, base.total_steps)
    width = max(len(parameter) for parameter in job.sweep.space)
    space = [f"{parameter:<{width}}  {domain}" for parameter, domain in job.sweep.space.items()]
    lines = [
        f"sweep {job.name}   setting {job.setting}   recipe {job.recipe}   seed {job.seed}",
        "",
        *_labelled("space", space),
        *_labelled("within", list(job.sweep.constraints)),
        f"search     {_search(job)}",
        f"stopping   {_stopping(job, length)}",
        f"trials     {_trials(job, length, base)}",
        *_candidates(job, seen),
        *_work(job, base, seen, length),
        f"winner     {_winner(job)}",
    ]
    return "\n".join([*lines, *(f"warning: {text}" for text in base.warnings)])


def training_job(job: SweepJob) -> Job:
    """Return the training job of the sweep, without values for its parameters."""
    return Job.model_validate(job.model_dump(mode="json", exclude={"sweep", "kind"}))


def with_network(job: SweepJob, base: Job) -> Job:
    """Return `base` with the first network of the sweep that can be built, if it is user-defined.

    An argument that its class requires may have values in the space alone, and then `base` cannot build it.
    """
    if base.model.class_ is None:
        return base
    points = islice(random_points(job.sweep.space, job.sweep.search.seed), MAX_CONSECUTIVE_REJECTIONS)
    found = (examine(job, values) for values in points)
    model = next((made[0].model for made in found if not isinstance(made, str)), base.model)
    return base.model_copy(update={"model": model})


def grid_points(job: SweepJob) -> tuple[int, bool]:
    """Return how many points a full grid has, and whether that assumes `points` for a range without them."""
    space = {
        parameter: domain
        if domain.values is not None
        else domain.model_copy(update={"points": ASSUMED_POINTS})
        for parameter, domain in job.sweep.space.items()
    }
    return _count(space), space != dict(job.sweep.space)


def _count(space: Mapping[str, Domain]) -> int:
    points = math.prod(len(domain.values or ()) for domain in space.values())
    if points <= _MAX_COUNTED and any(domain.when for domain in space.values()):
        return sum(1 for _ in grid(space))
    return points


def _labelled(label: str, texts: list[str]) -> list[str]:
    return [f"{'' if i else label:<10} {text}" for i, text in enumerate(texts)]


def _search(job: SweepJob) -> str:
    search = job.sweep.search
    if search.method == "grid":
        return "grid, every point in the order of the file"
    text = f"{search.method}, seed {search.seed}"
    if search.method in ("tpe", "optuna"):
        text += f", {search.startup_trials} random trials first; validation PSNR"
        text += f" against {search.second_objective}" if search.second_objective else ""
    return text


def _stopping(job: SweepJob, length: int) -> str:
    scheduler = job.sweep.scheduler
    first, share = f"{scheduler.first_steps:,}", f"one of {scheduler.reduction}"
    steps = ", ".join(f"{step:,}" for step in rungs(scheduler.first_steps, scheduler.reduction, length))
    return {
        "none": "none: every trial runs to its end",
        "asha": f"asha: {share} continues from steps {steps}",
        "hyperband": f"hyperband: brackets of trials, of which {share} continues, from {first} steps",
        "median": f"median: below the median of other trials, from {first} steps",
        **{
            name: f"{name}: every {first} steps {share} copies weights and values of a better trial"
            for name in ("pbt", "pb2")
        },
    }[scheduler.name]


def _trials(job: SweepJob, length: int, base: Plan) -> str:
    workers, sweep = job.workers, job.sweep
    kind = f"{workers.gpus:g} GPU" if workers.gpus else f"{workers.cpus:g} CPU"
    of = f" of the job's {base.total_steps:,}" if length < base.total_steps else ""
    concurrent = f"at most {sweep.max_concurrent}" if sweep.max_concurrent else "as many as fit"
    return f"{sweep.trials} of {length:,} steps{of}, {workers.min} x {kind} each, {concurrent} at a time"


def _candidates(job: SweepJob, seen: Preview) -> list[str]:
    learns = job.sweep.search.method not in ("grid", "random")
    points, assumed = grid_points(job)
    full = f"a full grid has {points:,} points" + (f" ({ASSUMED_POINTS} for a range)" if assumed else "")
    lines = [
        f"candidates {len(seen.accepted)} accepted, {'if the search did not learn' if learns else 'in this order'}; "
        f"{len(seen.rejected)} rejected; {full}"
    ]
    rows = [
        (
            format_params(values),
            format_quantity("parameters", costs.parameters),
            format_quantity("macs_224", costs.macs_224),
            format_quantity("training_memory", costs.training_memory),
        )
        for values, _, costs in seen.accepted[:MAX_LISTED]
    ]
    head, _, *body = tables.aligned(("", "parameters", "MACs 224²", "memory"), rows, "<>>>")
    lines += [f"             {line}" for line in ([head, *body] if rows else [])]
    if len(seen.accepted) > MAX_LISTED:
        lines.append(f"             and {len(seen.accepted) - MAX_LISTED} more")
    rejected = [f"  {format_params(values)}: {reason}" for values, reason in seen.rejected[:MAX_LISTED]]
    if len(seen.rejected) > MAX_LISTED:
        rejected.append(f"  and {len(seen.rejected) - MAX_LISTED} more")
    return lines + _labelled("rejected", rejected)


def _work(job: SweepJob, base: Plan, seen: Preview, length: int) -> list[str]:
    """Return the multiply-adds of training, the only cost that does not depend on the machine."""
    if job.model.class_ is not None or not seen.accepted:
        return []
    samples = base.stages.position_at(length)
    each = [_training_macs(trial, samples) for _, trial, _ in seen.accepted]
    mean = sum(each) / len(each)
    trials = mean * min(job.sweep.trials, len(each) if seen.exhausted else job.sweep.trials)
    text = f"work       {_format_macs(trials)} if all trials reach their ends"
    if job.sweep.scheduler.name == "asha":
        text += f", about {_format_macs(trials * _share(job, length))} if the rungs stop what they should"
    points, _ = grid_points(job)
    return [f"{text}; a full grid: {_format_macs(mean * points)}"]


def _training_macs(job: Job, samples: int) -> float:
    pixels = crop_stages.declared(job)[0].pixels
    return _FORWARD_AND_BACKWARD * macs(job.model.build(), pixels, pixels) * samples


def _share(job: SweepJob, length: int) -> float:
    """Return the average share of their steps that trials take if one of `reduction` continues from each rung."""
    scheduler = job.sweep.scheduler
    marks = (0, *rungs(scheduler.first_steps, scheduler.reduction, length), length)
    work = sum((after - before) / scheduler.reduction**i for i, (before, after) in enumerate(pairwise(marks)))
    return float(work) / length


def _format_macs(number: float) -> str:
    for unit, scale in (("P", 1e15), ("T", 1e12)):
        if number >= scale:
            return f"{number / scale:,.3g} {unit}MAC"
    return f"{number / 1e9:,.3g} GMAC"


def _winner(job: SweepJob) -> str:
    winner = job.sweep.winner
    if winner.then == "none":
        return "is reported"
    changes = ", ".join(f"{key}={value}" for key, value in winner.set.items())
    how = "continues to its job's end" if winner.then == "continue" else f"is trained again with {changes}"
    return f"{how}, is evaluated, and registered as {job.track.register_as}, candidate"
